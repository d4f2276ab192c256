"""Freed memory stays with the process that asks for it, in a real process."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import psutil, torch
from ohlora.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
buffer = torch.ones(64 << 20)  # 256 MiB
held = psutil.Process().memory_info().rss
del buffer
print((held - psutil.Process().memory_info().rss) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets glibc's allocator")
def test_freed_memory_is_kept_only_when_asked_for() -> None:
    given_back = {
        mode: int(
            subprocess.run(
                [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True
            ).stdout
        )
        for mode in ("keep", "leave")
    }
    assert given_back["keep"] < 16
    assert given_back["leave"] > 240
