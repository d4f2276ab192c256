"""A user's folder of photos as portraits: each file is read, its face found, turned upright and framed.

The result is a folder of the one storage format, with variant `photo`, no ground truth and masks that say
background everywhere, and `report.csv` with one row for every file: what became of it and why. No file stops
a run, whatever is in it, and only one is in memory at a time.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ohlora.corpus.faces import LEAST_FACE, Detector, Framing, Picture
from ohlora.corpus.image_files import ImageFileError, read_image
from ohlora.corpus.portraits import (
    SCHEMA,
    TRUTH_NAMES,
    CorpusError,
    decode_image,
    encode_image,
    encode_mask,
    split_of,
    write,
)

REPORT = "report.csv"
FIRST_IDENTITY = 1 << 40  # above those of people who are rendered or generated
RIVAL = 0.35  # share of the largest face's area from which another face makes a photo ambiguous
LEAST_EYES = 0.2  # eye distance in the photo over that in the portrait: below it there is too little to see
MOST_OUTSIDE = 0.5  # share of the portrait beyond the photo's edge
FRAMED_BY = 32  # portraits on which the framing is measured
FRONTAL = 8.0  # degrees of yaw that such a portrait has at most


@dataclass(frozen=True)
class Outcome:
    """What became of a file; a row of `report.csv`."""

    file: str  # relative to the folder
    status: str  # ok, or what is wrong: see docs/corpus.md
    reason: str  # for people
    identity: int | None = None  # of the portrait, when there is one


def framing_of(table: pa.Table, detector: Detector) -> Framing:
    """How faces sit in a corpus: the mean over up to 32 of its frontal, undamaged, rendered portraits.

    Raises:
        CorpusError: there are too few of them.
    """
    pose, quality = table["pose"].to_numpy(), table["quality"].to_numpy()
    rows = np.flatnonzero((np.abs(pose) <= FRONTAL) & (quality != 0))
    rows = rows[np.linspace(0, len(rows) - 1, min(FRAMED_BY, len(rows))).astype(int)]
    images = (decode_image(table["image"][int(row)].as_py()) for row in rows)
    try:
        return Framing.measure(images, detector)
    except ValueError as error:
        raise CorpusError(
            f"the sample cannot say how to frame photos: {error}; restore: git checkout data/portraits"
        ) from error


def portrait_of(
    image: Picture, detector: Detector, framing: Framing, size: int, largest: bool = False
) -> tuple[Picture | None, str, str]:
    """The face in a picture, framed like our renders.

    Args:
        image: uint8 [h, w, 3].
        detector: finds faces.
        framing: where the face shall be.
        size: pixels per side of the portrait.
        largest: take the largest of several faces instead of refusing the picture.

    Returns:
        the portrait uint8 [size, size, 3] or None, a status and a reason.
    """
    height, width = image.shape[:2]
    if min(height, width) < LEAST_FACE:
        return None, "too_small", f"{width}x{height} pixels; a face needs {LEAST_FACE}"
    faces = detector(image)
    if not faces:
        return None, "no_face", "no face is found"
    face = faces[0]
    rivals = sum(other.area >= RIVAL * face.area for other in faces[1:])
    if rivals and not largest:
        return None, "several_faces", f"{rivals + 1} faces of similar size; crop it, or take the largest"
    eyes = float(np.linalg.norm(face.landmarks[1] - face.landmarks[0]))
    wanted = float(np.linalg.norm(framing.landmarks[1] - framing.landmarks[0])) * size
    if eyes < LEAST_EYES * wanted:
        least = int(np.ceil(LEAST_EYES * wanted))
        return None, "face_too_small", f"the eyes are {eyes:.0f} pixels apart; at least {least} are needed"
    portrait, outside = framing.crop(image, face, size)
    if outside > MOST_OUTSIDE:
        return None, "cut_off", f"{outside:.0%} of the portrait lie outside of the photo"
    notes = []
    if len(faces) > 1:
        notes.append(f"the largest of {len(faces)} faces")
    if outside > 0.02:
        notes.append(f"{outside:.0%} beyond the photo's edge are mirrored")
    return portrait, "ok", "; ".join(notes)


def collect(
    folder: Path,
    paths: Iterable[Path],
    detector: Detector,
    framing: Framing,
    size: int,
    test_fraction: float,
    largest: bool = False,
) -> tuple[pa.Table, list[Outcome]]:
    """Portraits of photos, and what became of every file.

    A person is named by the content of the file, so that the same photo always falls into the same split.

    Args:
        folder: that the paths are below.
        paths: files of any kind.
        detector: finds faces.
        framing: where faces shall be.
        size: pixels per side of a portrait.
        test_fraction: share of people held out.
        largest: take the largest of several faces.

    Returns:
        rows of the storage format, about 15 kB of memory each at 256 pixels, and one outcome per file.
    """
    rows: list[dict[str, Any]] = []
    outcomes = []
    seen: dict[int, str] = {}
    blank = encode_mask(np.zeros((size, size), np.uint8))
    for path in paths:
        name = path.relative_to(folder).as_posix()
        try:
            portrait, status, reason = portrait_of(read_image(path), detector, framing, size, largest)
            identity = photo_identity(path) if portrait is not None else 0
        except ImageFileError as error:
            outcomes.append(Outcome(name, error.status, error.reason))
            continue
        except Exception as error:  # one odd file must not cost the others
            outcomes.append(Outcome(name, "failed", f"{type(error).__name__}: {error}"[:160]))
            continue
        if portrait is None:
            outcomes.append(Outcome(name, status, reason))
        elif identity in seen:
            outcomes.append(Outcome(name, "duplicate", f"the same file as {seen[identity]}"))
        else:
            seen[identity] = name
            rows.append(maskless_row(portrait, blank, identity, 0, "photo", test_fraction))
            outcomes.append(Outcome(name, status, reason, identity))
    return pa.Table.from_pylist(rows, SCHEMA), outcomes


def photo_identity(path: Path) -> int:
    """The number of the person in a photo: a hash of the file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    return FIRST_IDENTITY + int.from_bytes(digest[:5], "big")


def maskless_row(
    image: Picture, mask: bytes, identity: int, seed: int, variant: str, test_fraction: float
) -> dict[str, Any]:
    """A row of the storage format about which only the picture is known."""
    return {
        "image": encode_image(image),
        "mask": mask,
        "identity": identity,
        "seed": seed,
        "moment": 0,
        "variant": variant,
        "split": split_of(identity, test_fraction),
        "set": -1,
        "swept": "",
        "parameters": "",
        **dict.fromkeys(TRUTH_NAMES, float("nan")),
    }


def write_report(path: Path, outcomes: Iterable[Outcome]) -> None:
    """A CSV with the columns file, status, reason, identity; readable by spreadsheets (UTF-8 with a mark)."""
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "status", "reason", "identity"])
        for outcome in outcomes:
            name = outcome.file.encode("utf-8", "replace").decode()  # names need not be valid UTF-8
            if name.startswith(("=", "+", "-", "@")):
                name = "./" + name  # a spreadsheet would take it for a formula
            identity = "" if outcome.identity is None else outcome.identity
            table.writerow([name, outcome.status, outcome.reason, identity])


def write_photos(output: Path, table: pa.Table, outcomes: list[Outcome], settings: dict[str, Any]) -> None:
    """Write the folder of portraits and `report.csv` in it.

    Raises:
        CorpusError: no file gave a portrait; the report is written all the same.
    """
    output.mkdir(parents=True, exist_ok=True)
    write_report(output / REPORT, outcomes)
    if not table.num_rows:
        raise CorpusError(
            f"none of {len(outcomes)} files gave a portrait; {output / REPORT} says why for each of them"
        )
    write(output, table, {"generator": "photos", "files": len(outcomes), **settings})
