"""`ohlora persona`: what a person does with a character and its dialogues."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

persona_app = typer.Typer(help="The character: check the card and the dialogues.", no_args_is_help=True)


@persona_app.command(
    epilog="Example: ohlora persona check --card data/examples/haesong.yaml "
    "--dialogues data/examples/haesong.jsonl"
)
def check(
    card: Annotated[Path | None, typer.Option(help="Character card; else persona.card.")] = None,
    dialogues: Annotated[Path | None, typer.Option(help="Rows, .jsonl; else persona.dialogues.")] = None,
    most: Annotated[int, typer.Option(min=1, help="Print at most N findings.")] = 40,
) -> None:
    """Check a card and its dialogue rows; exits with 1 when something does not hold."""
    from ohlora.cli import console, explained, fail, settings

    with explained():
        from rich.table import Table

        from ohlora.persona import load_card
        from ohlora.persona.checks import check_file, measure, openings

        config, root = settings()
        who = load_card(card or root / config.persona.card)
        path = dialogues or root / config.persona.dialogues
        rows, findings = check_file(path, who, config.persona.checks)
        table = Table("", "train", "valid", "test", "all", title=f"{who.name}: {path}")
        for figures in measure(rows, who):
            table.add_row(*(str(value) for value in figures.values()))
        console.print(table)
        console.print(
            "openings: " + ", ".join(f"{word} {n / len(rows):.1%}" for word, n in openings(rows)[:8]),
            markup=False,
        )
        for finding in findings[:most]:
            console.print(f"{'error' if finding.is_error else 'look'}: {finding}", markup=False)
        if len(findings) > most:
            console.print(f"and {len(findings) - most} more")
        errors = sum(finding.is_error for finding in findings)
        if errors:
            fail(f"{errors} errors in {path}")
        console.print(f"{len(rows)} rows hold, {len(findings)} worth a look")


@persona_app.command(
    epilog="Example: ohlora persona questions --out questions.csv && "
    "ohlora reply --prompts questions.csv --samples 2 --set generation.temperature=0.7 --out own.csv && "
    "ohlora run --target preference --set preference.samples=own.csv --set preference.steps=150"
)
def questions(
    out: Annotated[Path, typer.Option(help="CSV to write, with a column prompt.")],
    card: Annotated[Path | None, typer.Option(help="Character card; else persona.card.")] = None,
    dialogues: Annotated[Path | None, typer.Option(help="Rows, .jsonl; else persona.dialogues.")] = None,
) -> None:
    """List the training messages that a fact of the card answers, for `ohlora reply`.

    Her own replies to them, `preference.samples`, teach her to say what her prompt shows.
    """
    from ohlora.cli import console, explained, settings

    with explained():
        import csv

        from ohlora.config import ConfigError
        from ohlora.llm.own_replies import fact_words
        from ohlora.persona import load_card
        from ohlora.persona.dialogues import load_dialogues
        from ohlora.persona.prompt import render_prompt

        config, root = settings()
        who, on = load_card(card or root / config.persona.card), config.persona.day
        found = {
            row.user: None
            for row in load_dialogues(dialogues or root / config.persona.dialogues)
            if row.split == "train"
            and not row.history
            and not row.memories_read
            and fact_words(render_prompt(who, [], [], row.user, on), who.filled(row.reply, on))
        }
        if out.is_dir():
            raise ConfigError(f"--out {out} is a folder; name a file, e.g. {out / 'questions.csv'}")
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w", encoding="utf-8", newline="") as f:
            csv.writer(f).writerows([["prompt"], *([message] for message in found)])
        console.print(f"{len(found)} messages: {out}", markup=False)
