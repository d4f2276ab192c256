"""One picture file of a user as an RGB array, or one sentence that says why not.

Files of strangers come in every mode and state of repair. Only decoders of common formats are asked (none
that starts a program), the size is checked before anything is decoded, and whatever a decoder raises ends as
an `ImageFileError`. Memory stays below about 4 bytes times `MOST_PIXELS` for one file.
"""

from __future__ import annotations

import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ohlora.errors import UserError

MOST_PIXELS = 80_000_000  # 8192 x 8192 passes, a decompression bomb does not
MOST_BYTES = 512 * 1024 * 1024
LONGEST_SIDE = 2048  # larger pictures are shrunk: no face needs more
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA")
PAPER = (255, 255, 255)  # behind transparent pixels

Status = Literal["missing", "empty", "unreadable", "not_an_image", "too_large", "corrupt"]


class ImageFileError(UserError, ValueError):
    """A file gives no picture: `status` for tables, `reason` for people."""

    def __init__(self, path: Path, status: Status, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.status: Status = status
        self.reason = reason


def read_image(path: Path, longest_side: int = LONGEST_SIDE) -> NDArray[np.uint8]:
    """The picture in a file, upright, without transparency, in 8 bits.

    Grayscale, palette, CMYK, 16 and 32 bit and float pictures become RGB; transparent pixels become white;
    the EXIF orientation is applied; of an animation the first frame is taken; colour profiles are ignored.

    Args:
        path: a file of any kind.
        longest_side: larger pictures are shrunk to this many pixels.

    Returns:
        uint8 [h, w, 3] RGB, 1 <= h, w <= longest_side.

    Raises:
        ImageFileError: there is no picture in it; nothing else is raised, whatever the bytes are.
    """
    path = Path(path)
    try:
        about = path.stat()
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "there is no such file" if missing else f"cannot be read: {_short(error)}"
        raise ImageFileError(path, "missing" if missing else "unreadable", reason) from error
    if not stat.S_ISREG(about.st_mode):
        raise ImageFileError(path, "unreadable", "not a regular file")
    if about.st_size == 0:
        raise ImageFileError(path, "empty", "the file is empty")
    if about.st_size > MOST_BYTES:
        reason = f"{about.st_size // 2**20} MiB; the limit is {MOST_BYTES // 2**20} MiB"
        raise ImageFileError(path, "too_large", reason)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd metadata; both are handled
        try:
            with path.open("rb") as file, Image.open(file, formats=_decoders()) as image:
                width, height = image.size
                if width * height > MOST_PIXELS:
                    raise _too_large(path, f"{width}x{height} pixels")
                image.draft("RGB", (longest_side, longest_side))  # JPEG: decode no more than is needed
                return np.array(_shrunk(_eight_bit_rgb(_upright(image)), longest_side))
        except ImageFileError:
            raise
        except UnidentifiedImageError as error:
            raise ImageFileError(path, "not_an_image", "not a picture of a known format") from error
        except Image.DecompressionBombError as error:
            raise _too_large(path, "far too many pixels") from error
        except PermissionError as error:
            raise ImageFileError(path, "unreadable", f"cannot be read: {_short(error)}") from error
        except Exception as error:  # decoders fail on damaged bytes in many ways; none may stop a run
            raise ImageFileError(path, "corrupt", f"does not decode: {_short(error)}") from error


def image_paths(folder: Path) -> Iterator[Path]:
    """Every file below a folder but hidden ones, sorted; also those that are no pictures, to report on them.

    Raises:
        ImageFileError: there is no such folder.
    """
    if not folder.is_dir():
        raise ImageFileError(folder, "missing", "there is no such folder")
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.is_file():
            yield path


def _decoders() -> list[str]:
    """Those of the formats that this build of Pillow knows."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _too_large(path: Path, what: str) -> ImageFileError:
    return ImageFileError(path, "too_large", f"{what}; the limit is {MOST_PIXELS // 10**6} megapixels")


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data; the picture itself is fine
        return image


def _eight_bit_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I", "F"):
        values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
        top = float(values.max(initial=0))
        if image.mode == "F" and top <= 1:
            values = values * 255
        elif image.mode.startswith("I;16") or top > 255:
            values = values / (257 if top <= 65535 else top / 255)
        return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        paper = Image.new("RGBA", layered.size, (*PAPER, 255))
        return Image.alpha_composite(paper, layered).convert("RGB")
    return image.convert("RGB")


def _shrunk(image: Image.Image, longest_side: int) -> Image.Image:
    if max(image.size) <= longest_side:
        return image
    scale = longest_side / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BICUBIC)


def _short(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:120] or type(error).__name__
