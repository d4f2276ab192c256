"""`ohlora voice select`: compare candidates for the voice."""

from __future__ import annotations

from typing import Annotated

import typer


def voice_select(
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", help="Profile, e.g. smoke or gpu.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="A setting for all candidates (repeatable).")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only this candidate (repeatable).")
    ] = None,
) -> None:
    """Fine-tune and score each of voice.candidates alike; one table, in MLflow as nested runs."""
    from rich.table import Table

    from ohlora.cli import console, explained
    from ohlora.config import find_root
    from ohlora.evaluation.voice_selection import Selection
    from ohlora.pipeline import run_lock

    with explained():
        selection = Selection(find_root(), profile, overrides or [], only or [])
        with run_lock(selection.config, selection.root, "ohlora voice select"), selection.opened():
            for candidate in selection.candidates:
                console.print(f"{candidate.name}: {' '.join(candidate.overrides)}")
                selection.measure(candidate)
        table = Table("figure", *(str(row["candidate"]) for row in selection.rows))
        for name in selection.rows[0]:
            if name != "candidate":
                table.add_row(name, *(f"{row[name]:.4g}" for row in selection.rows))
        console.print(table)
        console.print(f"best by {selection.config.gate.voice.primary}: {selection.best()}")
