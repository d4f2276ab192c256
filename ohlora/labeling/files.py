"""The nine attributes of any picture files as a table: a row per file, with a reason where there is no score.

No file stops a run, whatever is in it. Pictures are scored in batches by models that are loaded once, and
only one batch is in memory at a time.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ohlora.attributes import ATTRIBUTE_NAMES
from ohlora.corpus.faces import Detector, Framing
from ohlora.corpus.image_files import ImageFileError, image_paths, read_image
from ohlora.corpus.photos import portrait_of
from ohlora.labeling.calibration import Calibration
from ohlora.labeling.pictures import COLORS
from ohlora.labeling.scoring import Labeler

SIZE = 256  # pixels of the portraits that the models were trained on
LEAST_SIDE = 48  # pixels of a picture below which there is nothing to see
SQUARE = 0.02  # difference of the sides of a picture that counts as square
FRAMED = 0.03  # mean distance of a face from our framing, in sides, below which it is not cropped again

Picture = NDArray[np.uint8]
Framed = tuple[Picture | None, str, str]  # portrait uint8 [256, 256, 3], status, reason
Frame = Callable[[Picture], Framed]


@dataclass(frozen=True)
class Row:
    """One file of the table."""

    file: str
    status: str  # ok, or what is wrong
    reason: str  # for people
    raw: dict[str, float] = field(default_factory=dict)  # the nine, units of Attributes; NaN is unknown
    scores: dict[str, float] = field(default_factory=dict)  # z against the corpus


def listed(paths: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """A name of its own and the path of each of files and of those in folders, hidden ones left out."""
    used: Counter[str] = Counter()
    for path in paths:
        files = image_paths(path) if path.is_dir() else [path]
        for file in files:
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            if path.is_dir() and len(paths) > 1:
                name = f"{path.name}/{name}"
            used[name] += 1
            yield name if used[name] == 1 else f"{name} ({used[name]})", file


def as_it_is(image: Picture) -> Framed:
    """Take a square picture uint8 [h, w, 3] for a portrait in our framing."""
    if refused := _too_small(image):
        return refused
    if not _is_square(image):
        height, width = image.shape[:2]
        return None, "not_square", f"{width}x{height} pixels; portraits are square: use --crop auto"
    return _resized(image), "ok", ""


def cropped(detector: Detector, framing: Framing, largest: bool = False) -> Frame:
    """Find the face and frame it like our portraits; a picture that is framed so already is left as it is.

    Args:
        detector: finds faces.
        framing: where the face shall be.
        largest: take the largest of several faces instead of refusing the picture.
    """

    def frame(image: Picture) -> Framed:
        if refused := _too_small(image):
            return refused
        if _is_square(image):
            faces = detector(image)
            if len(faces) == 1:
                away = faces[0].landmarks / image.shape[0] - framing.landmarks
                if float(np.linalg.norm(away, axis=1).mean()) <= FRAMED:
                    return _resized(image), "ok", ""
        return portrait_of(image, detector, framing, SIZE, largest)

    return frame


def label_files(
    files: Iterable[tuple[str, Path]],
    labeler: Labeler,
    calibration: Calibration | None,
    frame: Frame,
    batch: int = 16,
    masks: Path | None = None,
) -> Iterator[Row]:
    """Score picture files, in their order.

    Args:
        files: names for the table and paths.
        labeler: the models.
        calibration: with the statistics of the corpus; None leaves z-scores unknown.
        frame: makes a portrait of a picture.
        batch: pictures at a time.
        masks: folder that gets each mask as an indexed PNG, and the portrait that it belongs to.
    """
    waiting: list[Row] = []
    portraits: dict[int, tuple[Picture, Path]] = {}
    for name, path in files:
        portrait, row = _portrait(name, path, frame)
        if portrait is not None:
            portraits[len(waiting)] = portrait, Path(name)
        waiting.append(row)
        if len(portraits) >= batch or len(waiting) >= 16 * batch:
            yield from _scored(waiting, portraits, labeler, calibration, masks)
            waiting, portraits = [], {}
    yield from _scored(waiting, portraits, labeler, calibration, masks)


def _portrait(name: str, path: Path, frame: Frame) -> tuple[Picture | None, Row]:
    try:
        portrait, status, reason = frame(read_image(path))
    except ImageFileError as error:
        return None, Row(name, error.status, error.reason)
    except Exception as error:  # one odd file must not cost the others
        return None, Row(name, "failed", f"{type(error).__name__}: {error}"[:160])
    return portrait, Row(name, status, reason)


def _scored(
    rows: list[Row],
    portraits: dict[int, tuple[Picture, Path]],
    labeler: Labeler,
    calibration: Calibration | None,
    masks: Path | None,
) -> Iterator[Row]:
    if not portraits:
        yield from rows
        return
    reading = labeler.read(np.stack([portrait for portrait, _ in portraits.values()]))
    scores = calibration.scores(reading.attributes) if calibration else {}
    if masks is not None:
        for mask, (portrait, name) in zip(reading.masks, portraits.values(), strict=True):
            _save(masks, name, portrait, mask)
    place = {number: i for i, number in enumerate(portraits)}
    for number, row in enumerate(rows):
        i = place.get(number)
        if i is None:
            yield row
            continue
        yield Row(
            row.file,
            row.status,
            row.reason,
            {name: float(values[i]) for name, values in reading.attributes.items()},
            {name: float(values[i]) for name, values in scores.items()},
        )


def _save(folder: Path, name: Path, portrait: Picture, mask: NDArray[np.uint8]) -> None:
    target = folder / name.with_name(f"{name.name}.mask.png")
    target.parent.mkdir(parents=True, exist_ok=True)
    indexed = Image.fromarray(mask)
    indexed.putpalette(COLORS.reshape(-1).tolist())
    indexed.save(target)
    Image.fromarray(portrait).save(folder / name.with_name(f"{name.name}.portrait.png"))


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """A CSV with file, status, reason, the nine attributes and their z-scores; unknown values are empty.

    It has a byte order mark, so that spreadsheets read it as UTF-8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            ["file", "status", "reason", *ATTRIBUTE_NAMES, *(f"{name}_z" for name in ATTRIBUTE_NAMES)]
        )
        for row in rows:
            name = row.file.encode("utf-8", "replace").decode()  # names need not be valid UTF-8
            if name.startswith(("=", "+", "-", "@")):
                name = "./" + name  # a spreadsheet would take it for a formula
            cells = [_cell(values.get(n)) for values in (row.raw, row.scores) for n in ATTRIBUTE_NAMES]
            table.writerow([name, row.status, row.reason, *cells])


def _cell(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.5g}"


def _too_small(image: Picture) -> Framed | None:
    height, width = image.shape[:2]
    if min(height, width) < LEAST_SIDE:
        return None, "too_small", f"{width}x{height} pixels; at least {LEAST_SIDE} on a side are needed"
    return None


def _is_square(image: Picture) -> bool:
    height, width = image.shape[:2]
    return abs(height - width) <= SQUARE * max(height, width)


def _resized(image: Picture) -> Picture:
    resample = Image.Resampling.BOX if min(image.shape[:2]) >= 2 * SIZE else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize((SIZE, SIZE), resample))
