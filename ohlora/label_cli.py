"""`ohlora label` and `ohlora import-teacher`: what a person does with the labeling models."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from ohlora.artifacts import MANIFEST
from ohlora.config import Config
from ohlora.errors import UserError

STARTERS = "data/starters"


class LabelError(UserError, RuntimeError):
    """Files cannot be labelled; the message says what to do."""


def label(
    paths: Annotated[list[Path], typer.Argument(help="Picture files, or folders of them.")],
    out: Annotated[Path, typer.Option(help="CSV file to write.")] = Path("scores.csv"),
    masks: Annotated[Path | None, typer.Option(help="Write masks and portraits into this folder.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=256, help="Pictures at a time.")] = 16,
    crop: Annotated[
        str, typer.Option(help="auto: find the face and frame it; never: pictures are framed already.")
    ] = "auto",
    largest: Annotated[bool, typer.Option(help="Of several faces take the largest.")] = False,
) -> None:
    """Nine attributes of any pictures, raw and against the corpus."""
    from ohlora.cli import explained, settings

    with explained():
        if crop not in ("auto", "never"):
            raise LabelError(f"--crop {crop!r} is not allowed; there are: auto, never")
        if out.is_dir():
            raise LabelError(f"--out {out} is a folder; name a file, e.g. {out / 'scores.csv'}")
        config, root = settings()
        _label(config, root, paths, out, masks, batch, "auto" if crop == "auto" else "never", largest)


def import_teacher(
    checkpoint: Annotated[Path, typer.Argument(help="A FaceXFormer checkpoint, .pt or .pth.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; name it in labeling.teacher.")],
) -> None:
    """Convert FaceXFormer's weights, so that the parser can learn from it."""
    from ohlora.cli import explained
    from ohlora.labeling.teacher import convert

    with explained():
        Console(highlight=False).print(f"wrote {out}, digest {convert(checkpoint, out)[:12]}")


def _label(
    config: Config,
    root: Path,
    paths: list[Path],
    out: Path,
    masks: Path | None,
    batch: int,
    crop: Literal["auto", "never"],
    largest: bool,
) -> None:
    from tqdm.auto import tqdm

    from ohlora.labeling.calibration import Calibration, CalibrationError
    from ohlora.labeling.files import Frame, as_it_is, cropped, label_files, listed, write_table
    from ohlora.labeling.scoring import Labeler

    console = Console(highlight=False, soft_wrap=True)
    labeler = Labeler.load(model_folders(config, root), config.runtime.device)
    try:
        calibration: Calibration | None = Calibration.load(_first(root, "labels", "calibration.json"))
    except CalibrationError as error:
        calibration = None
        console.print(f"without z-scores: {error}")
    frame: Frame = as_it_is
    if crop == "auto":
        from ohlora.corpus.faces import MtcnnDetector
        from ohlora.corpus.photos import framing_of
        from ohlora.corpus.portraits import read_table

        detector = MtcnnDetector()
        frame = cropped(detector, framing_of(read_table(root / config.corpus.sample), detector), largest)
    files = list(listed(paths))
    progress = tqdm(files, desc="label", disable=None)
    rows = list(label_files(progress, labeler, calibration, frame, batch, masks))
    write_table(out, rows)
    counts = Counter(row.status for row in rows)
    others = ", ".join(f"{n} {status}" for status, n in counts.most_common() if status != "ok")
    console.print(f"{counts['ok']} of {len(rows)} files scored{f' ({others})' if others else ''}: {out}")


def model_folders(config: Config, root: Path) -> dict[str, Path]:
    """Folders of the champion parser, the classifiers and the property network; starters stand in.

    Raises:
        LabelError: there is none of a kind.
    """
    from ohlora.registry import Registry

    registry = Registry(config, root)
    champion = registry.find("labeler", "champion")
    if champion is not None:
        parser = registry.fetch("labeler", champion)
    else:
        parser = _first(root, "parser", MANIFEST, starter="labeler")
    return {
        "parser": parser,
        "filters": _first(root, "filters", MANIFEST),
        "properties": _first(root, "properties", MANIFEST),
    }


def _first(root: Path, name: str, file: str, starter: str = "") -> Path:
    """The folder of a stage's output, or of the starter, that has a file in it."""
    folders = [root / "artifacts" / name, root / STARTERS / (starter or name)]
    for folder in folders:
        if (folder / file).is_file():
            return folder
    if file == MANIFEST:
        raise LabelError(
            f"there is no {name} model in {folders[0]}; make it with: ohlora run --target labels"
        )
    return folders[0]
