"""`ohlora express`: the expression of every reply of a file."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from ohlora.config import ConfigError


def express(
    replies: Annotated[
        Path, typer.Option(help="CSV, JSON Lines, or plain text with one reply a line.", metavar="FILE")
    ],
    out: Annotated[Path, typer.Option(help="CSV to write.")] = Path("expressions.csv"),
    column: Annotated[str | None, typer.Option(help="Column of the replies; default reply.")] = None,
    voice: Annotated[
        Path | None,
        typer.Option(help="Merged voice folder that reads replies without a tag, instead of the policy."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="Change a setting (repeatable).")
    ] = None,
) -> None:
    """Expression, eyes, mouth and pose of replies: by their tag, else by the fallback policy.

    Columns expression, eyes, mouth, pose in the file are taken for the truth and compared.
    """
    from ohlora.cli import console, explained, settings

    with explained():
        from ohlora.evaluation.express import agreement, read_replies, read_with_voice, table
        from ohlora.evaluation.express import express as score
        from ohlora.persona.card import load_card

        if out.is_dir():
            raise ConfigError(f"--out {out} is a folder; name a file, e.g. {out / 'expressions.csv'}")
        config, root = settings(None, overrides)
        card = load_card(root / config.persona.card)
        scored = [score(row, card) for row in read_replies(replies, card, column)]
        if voice is not None:
            scored = read_with_voice(scored, voice, card)
        rows = table(scored)
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
            writer.writeheader()
            writer.writerows(rows)
        sources = Counter(s.source for s in scored)
        by = ", ".join(
            f"{sources[name]} by {name}" for name in ("turn", "tag", "voice", "policy") if sources[name]
        )
        console.print(f"{len(scored)} replies, {by or 'none scored'}: {out}", markup=False)
        for s in scored:
            if s.row.problem:
                console.print(f"line {s.row.line} is not scored: {s.row.problem}", markup=False)
        for name, figure in agreement(scored).items():
            interval = f"95 % interval {figure.low:.3f} to {figure.high:.3f}, {figure.count} rows"
            console.print(f"{name} {figure.value:.3f} ({interval})", markup=False)
        if sources["bad"] == len(scored):
            raise typer.Exit(1)
