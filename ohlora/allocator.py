"""The C library's memory allocator, set for training.

A training step allocates the same large buffers again and again. By default glibc gives each of them back to
the kernel, which then clears its pages anew: with the voice a sixth of the time of two cores. So whoever
trains keeps what it freed (mallopt(3), M_MMAP_MAX and M_TRIM_THRESHOLD).
"""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # <malloc.h>


def keep_freed_memory() -> bool:
    """Let this process keep freed memory until it ends, instead of returning it to the kernel.

    Returns:
        Whether the C library took it; another one than glibc is left as it is.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_MMAP_MAX, 0)) and bool(libc.mallopt(_TRIM_THRESHOLD, -1))
