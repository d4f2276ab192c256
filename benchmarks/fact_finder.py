"""How surely the card's words are found: wording alone, and with messages of the data that are like it.

    python benchmarks/fact_finder.py [--examples artifacts/examples]

Messages of writers who had seen neither the card nor the data; needs the stage `examples`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

from ohlora.config import load_config
from ohlora.memory import ExampleFinder
from ohlora.persona import load_card

ROOT = Path(__file__).parents[1]
DAY = date(2025, 12, 1)


def main() -> None:
    """Ask both and print a table and one line of JSON."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--examples", type=Path, default=ROOT / "artifacts/examples", help="of the stage")
    parser.add_argument("--messages", type=Path, default=ROOT / "tests/persona/fact_messages.jsonl")
    given = parser.parse_args()
    config = load_config(ROOT, "default")
    card = load_card(ROOT / config.persona.card)
    finder = ExampleFinder.load(given.examples, config.examples)
    asked = [json.loads(line) for line in given.messages.read_text(encoding="utf-8").splitlines()]
    likeness = [found.likeness for found in finder.find_many([m["user"] for m in asked], [0] * len(asked))]

    def replies(message: dict) -> set[str]:
        numbers = [] if message["fact"] is None else [message["fact"], *message.get("also", [])]
        return {card._stated(reply, DAY) for number in numbers for reply in card.facts[number].replies}

    def measured(say: Callable[[int], str]) -> dict[str, int]:
        counts = {"right": 0, "wrong": 0, "asked": 0, "taken": 0, "others": 0}
        for at, message in enumerate(asked):
            said = say(at)
            if message["fact"] is None:
                counts["others"] += 1
                counts["taken"] += bool(said)
            else:
                counts["asked"] += 1
                counts["right"] += said in replies(message)
                counts["wrong"] += bool(said) and said not in replies(message)
        return counts

    def words(at: int, likened: bool) -> str:
        known = likeness[at] if likened else None
        return card.words_for(asked[at]["user"], 0, DAY, boundaries=False, likeness=known)

    found = {
        "wording alone": measured(lambda at: words(at, False)),
        "with messages like it": measured(lambda at: words(at, True)),
    }
    print(f"{'':24}{'right':>8}{'wrong':>8}{'of':>8}{'taken':>8}{'of':>8}")
    for name, counts in found.items():
        print(
            f"{name:24}"
            + "".join(f"{counts[key]:8}" for key in ("right", "wrong", "asked", "taken", "others"))
        )
    print(json.dumps({"benchmark": "fact_finder", **found}, ensure_ascii=False))


if __name__ == "__main__":
    main()
