"""What a person sees of a stage in Prefect's UI: outcome, figures, pictures, the way to its MLflow run."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from ohlora.repro import StageResult

_PICTURE_BYTES = 100_000
_WORDS = {"ran": "computed", "restored": "restored from the cache of earlier runs", "skipped": "unchanged"}


def stage_page(result: StageResult, mlflow_url: str) -> str:
    """The page of a stage as Markdown, pictures inside."""
    report = result.report
    lines = [f"# {result.name}", f"{_WORDS[result.outcome]} in {result.seconds:.1f} s"]
    if report.run_id:
        lines.append(f"[Run, curves and weights in MLflow]({mlflow_url}/#/runs/{report.run_id})")
    lines += [f"- {note}" for note in report.notes]
    for title, name in report.pictures.items():
        lines.append(f"## {title}\n\n![{title}]({data_uri(result.folder / name)})")
    if report.metrics:
        rows = [f"| {name} | {value:.4g} |" for name, value in report.metrics.items()]
        lines.append("\n".join(["| figure | value |", "|---|---:|", *rows]))
    return "\n\n".join(lines) + "\n"


def data_uri(picture: Path) -> str:
    """A picture as a data URI of some 100 KB at most, made smaller as needed; a page needs no file server."""
    with Image.open(picture) as opened:
        image = opened.convert("RGB")
    for width in (1200, 900, 600, 400, 250):
        small = image.copy()
        small.thumbnail((width, width))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=82)
        if buffer.tell() <= _PICTURE_BYTES:
            break
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
