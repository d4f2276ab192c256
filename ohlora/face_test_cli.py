"""`ohlora gan test`: the image-generation test of one face model, with a report to read and to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ohlora.artifacts import MANIFEST
from ohlora.config import Config, ConfigError
from ohlora.errors import UserError

STARTERS = {"filters": "data/starters/filters", "parser": "data/starters/labeler"}


class FaceTestError(UserError, RuntimeError):
    """The test cannot run; the message says what is missing."""


def face_test(
    model: Annotated[Path | None, typer.Option(help="Folder of a face model; default the champion.")] = None,
    latents: Annotated[
        int | None, typer.Option(min=1, help="Sampled people; default face_test.latents.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write the report into.")] = Path("face-test"),
    quick: Annotated[bool, typer.Option(help="As few pictures as the stage face_test takes.")] = False,
    ellipse: Annotated[
        bool, typer.Option(help="Take what is outside an ellipse for hair and background, without a parser.")
    ] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="Change a setting (repeatable).")
    ] = None,
) -> None:
    """Does every sampled person obey and stay herself? The original's test and ours, one report."""
    from ohlora.cli import console, explained, settings

    with explained():
        if out.is_file():
            raise ConfigError(f"--out {out} is a file; name a folder")
        config, root = settings(None, overrides)
        text = _test(config, root, model, latents, out, quick, ellipse)
        console.print(text, markup=False)


def _test(
    config: Config, root: Path, model: Path | None, latents: int | None, out: Path, quick: bool, ellipse: bool
) -> str:
    from collections.abc import Iterable, Iterator
    from dataclasses import replace

    import torch
    from tqdm.auto import tqdm

    from ohlora.evaluation.evidence import Plan, gather
    from ohlora.evaluation.face_stage import examine_face
    from ohlora.evaluation.generation_report import MARKDOWN, write
    from ohlora.gan import load_face
    from ohlora.registry import Registry

    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    folder = model or Registry(config, root).fetch("face", "champion")
    face = load_face(folder, config.runtime.device)
    found = gather(_inputs(root, ellipse), config)
    plan = Plan.of(config.face_test, quick)
    if latents is not None:
        plan = replace(plan, latents=latents)

    def progress(items: Iterable[int], description: str, total: int | None) -> Iterator[int]:
        yield from tqdm(items, desc=description, total=total, mininterval=2.0, dynamic_ncols=True)

    name = str(model) if model else "champion"
    examination = examine_face(name, face, found, plan, progress)
    write(examination, face, out)
    page = (out / MARKDOWN).read_text(encoding="utf-8")
    return f"{page.split('## z units')[0].rstrip()}\n\nwrote {out / MARKDOWN} with tables, plots and grids"


def _inputs(root: Path, ellipse: bool) -> dict[str, Path]:
    """Folders of the evidence; committed starters stand in for filters and parser that were not trained yet.

    Raises:
        FaceTestError: there is no corpus or no judge.
    """
    inputs = {"corpus": root / "artifacts/corpus", "judge": root / "artifacts/judge"}
    for name, path in inputs.items():
        if not path.is_dir():
            raise FaceTestError(f"there is no {name} in {path}; make it with: ohlora run --target judge")
    for name, starter in STARTERS.items():
        if name == "parser" and ellipse:
            continue
        for place in (root / starter, root / "artifacts" / name):
            if (place / MANIFEST).is_file():
                inputs[name] = place
    return inputs
