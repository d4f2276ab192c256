"""The report of the voice test: JSON, CSV, Markdown and a plot in one folder."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ohlora.evaluation.generation_report import write_csv
from ohlora.evaluation.intervals import Figure
from ohlora.evaluation.voice_test import Result, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

JSON, MARKDOWN, FIGURES, REPLIES, PLOT = (
    "voice_test.json",
    "voice_test.md",
    "figures.csv",
    "replies.csv",
    "shares.png",
)
COLORS = ("#6b5bd2", "#d28a3c", "#8a8a8a")
WRONG_SHOWN = 30  # wrong replies on the page; all are in the table

TARGETS: dict[str, tuple[float, bool]] = {  # figure -> target, and whether more is better
    "facts_right": (0.95, True),
    "parse_rate": (1.0, True),
    "empty_rate": (0.0, False),
    "loop_rate": (0.005, False),
    "truncated_rate": (0.005, False),
    "distinct_rate": (230 / 240, True),
    "variety_copy_rate": (0.0, False),
    "expression_macro_f1": (0.75, True),
    "memory_f1": (0.8, True),
    "tokens_per_second": (60.0, True),
    "first_token_seconds": (0.2, False),
    "reply_seconds": (1.0, False),
    "slowest_reply_seconds": (3.0, False),
}

SECTIONS: dict[str, tuple[str, ...]] = {
    "What she says": (
        "facts_right",
        "facts_right_paraphrase",
        "facts_right_contradiction",
        "facts_right_trap",
        "declined_when_due",
        "harmless_answered",
        "carried_over",
        "recall_used",
    ),
    "How she says it": (
        "register_rate",
        "hangul_rate",
        "distinct_rate",
        "variety_copy_rate",
        "copy_rate",
        "reply_characters",
    ),
    "The turn": ("parse_rate", "empty_rate", "loop_rate", "truncated_rate"),
    "Memories to write": ("memory_precision", "memory_recall", "memory_f1", "memory_quiet"),
    "Expression, test split": (
        "expression_macro_f1",
        "own_expression_macro_f1",
        "expression_accuracy",
        "tag_rate",
        "eyes_correlation",
        "mouth_correlation",
        "pose_correlation",
        "eyes_mae",
        "mouth_mae",
        "pose_mae",
    ),
    "Likelihood and speed": (
        "bits_per_character",
        "tokens_per_second",
        "first_token_seconds",
        "reply_seconds",
        "slowest_reply_seconds",
    ),
}


def write(results: Sequence[Result], folder: Path) -> dict[str, str]:
    """Write the whole report of a voice, with others beside it.

    Args:
        results: the tested voice first.
        folder: made if it is not there.

    Returns:
        Title -> picture, relative to `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    body = {
        "targets": {name: target for name, (target, _) in TARGETS.items()},
        "voices": {
            result.name: {
                "figures": {name: _plain(figure) for name, figure in result.figures.items()},
                "notes": list(result.notes),
            }
            for result in results
        },
    }
    (folder / JSON).write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_csv(folder / FIGURES, figure_rows(results))
    write_csv(folder / REPLIES, [{"voice": r.name, **row} for r in results for row in table(r)])
    (folder / MARKDOWN).write_text(markdown(results), encoding="utf-8")
    plot(results, folder / PLOT)
    return {"Shares with 95 % intervals": PLOT}


def figure_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row a voice and figure."""
    return [
        {"voice": result.name, "figure": name, **_plain(figure)}
        for result in results
        for name, figure in result.figures.items()
    ]


def markdown(results: Sequence[Result]) -> str:
    """The report as a page."""
    first = results[0]
    names = [result.name for result in results]
    lines = [f"# Voice test: {first.name}", ""]
    lines += ["Value, 95 % interval in brackets, and of how many.", ""]
    for title, figures in SECTIONS.items():
        known = [name for name in figures if any(name in result.figures for result in results)]
        if known:
            lines += [f"## {title}", "", *_table(results, names, known), ""]
    for prefix, title in (
        ("facts_right_of_", "Facts by subject"),
        ("declined_when_due_of_", "Declined by subject"),
    ):
        known = [name for name in first.figures if name.startswith(prefix)]
        if known:
            lines += [f"## {title}", "", *_table(results, names, known, prefix), ""]
    wrong = [j for j in first.judged if j.right is False]
    if wrong:
        lines += [f"## Judged wrong, {min(len(wrong), WRONG_SHOWN)} of {len(wrong)}", ""]
        lines += [f"- `{j.ask.probe.id}` {j.ask.probe.user} → {j.reply}" for j in wrong[:WRONG_SHOWN]]
        lines.append("")
    notes = [note for result in results for note in result.notes]
    if notes:
        lines += ["## Notes", "", *(f"- {note}" for note in dict.fromkeys(notes)), ""]
    return "\n".join([*lines, f"![Shares with 95 % intervals]({PLOT})"]) + "\n"


def _table(
    results: Sequence[Result], names: Sequence[str], figures: Sequence[str], prefix: str = ""
) -> list[str]:
    lines = [f"| Figure | {' | '.join(names)} | Target |", f"| --- |{' --- |' * (len(names) + 1)}"]
    for name in figures:
        cells = [_cell(result.figures.get(name)) for result in results]
        lines.append(f"| {name.removeprefix(prefix)} | {' | '.join(cells)} | {_target(name)} |")
    return lines


def _cell(figure: Figure | None) -> str:
    if figure is None or not math.isfinite(figure.value):
        return "–"
    if not math.isfinite(figure.low):
        return f"{figure.value:.3g} ({figure.count})"
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}] ({figure.count})"


def _target(name: str) -> str:
    if name not in TARGETS:
        return ""
    value, more = TARGETS[name]
    return f"{'≥' if more else '≤'} {value:.3g}"


def _plain(figure: Figure) -> dict[str, float | int | None]:
    """JSON has no NaN: unknown is null."""

    def known(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "value": known(figure.value),
        "low": known(figure.low),
        "high": known(figure.high),
        "count": figure.count,
    }


def plot(results: Sequence[Result], path: Path) -> None:
    """Every share of the first voice with its interval; the others as further dots."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # pyplot would touch global state
    from matplotlib.figure import Figure as Canvas

    shares = [name for names in SECTIONS.values() for name in names]
    shares += [name for name in results[0].figures if "_of_" in name]
    shares = [n for n in shares if n in results[0].figures and _is_share(results[0].figures[n], n)]
    figure = Canvas(figsize=(7.5, 0.9 + 0.24 * len(shares)), layout="constrained")
    FigureCanvasAgg(figure)
    axis: Axes = figure.subplots()
    for k, result in enumerate(results):
        drawn = [(y, result.figures[n]) for y, n in enumerate(shares) if n in result.figures]
        known = [(y, f) for y, f in drawn if math.isfinite(f.value) and math.isfinite(f.low)]
        values = [f.value for _, f in known]
        # a percentile interval need not hold the value itself
        reach = [
            [max(0.0, f.value - f.low) for _, f in known],
            [max(0.0, f.high - f.value) for _, f in known],
        ]
        axis.errorbar(
            values,
            [y + 0.22 * k for y, _ in known],
            xerr=reach,
            fmt="o",
            markersize=4,
            elinewidth=1,
            color=COLORS[k % len(COLORS)],
            label=result.name,
        )
    axis.set_yticks(range(len(shares)), shares, fontsize=7)
    axis.invert_yaxis()
    axis.set_xlim(-0.02, 1.02)
    axis.grid(axis="x", alpha=0.3)
    axis.legend(loc="lower left", fontsize=7)
    figure.savefig(path, dpi=100)


def _is_share(figure: Figure, name: str) -> bool:
    bounded = not name.endswith(("_seconds", "_mae", "_characters", "per_second", "per_character"))
    return bounded and math.isfinite(figure.value)
