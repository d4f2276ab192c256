"""Cross the hand-written memories and messages of data/memory/source.yaml into data/memory/pairs.jsonl.

    python scripts/make_memory_pairs.py [--check]

Scores: 1.0 a message should recall the memory, 0.5 it is somewhat related, 0.0 it is not. Every pair stays
in the split of its key. Random negatives come from unrelated keys of the same split, with a seed derived from
the memory, so that the file is the same each time; `--check` compares instead of writing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

SOURCE = Path("data/memory/source.yaml")
PAIRS = Path("data/memory/pairs.jsonl")
SPLITS = ("train", "valid", "test")
NEGATIVES = 6  # random ones for each memory
SMALLTALK = 2  # messages that need no memory, for each memory
RELATED = 3  # messages of related keys, for each memory


class SourceError(ValueError):
    """The source does not hold; the message names the key."""


def make_pairs(source: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows `memory`, `message`, `score`, `split` from the parsed source.

    Raises:
        SourceError: an unknown split, a related key of another split, or too few messages.
    """
    keys: dict[str, Any] = source["keys"]
    pairs: list[dict[str, Any]] = []
    for key, entry in keys.items():
        split = entry["split"]
        if split not in SPLITS:
            raise SourceError(f"{key}: split {split!r} is not one of {', '.join(SPLITS)}")
        if strangers := [k for k in _near(entry) if k not in keys or keys[k]["split"] != split]:
            raise SourceError(f"{key}: related keys of another split or none: {', '.join(strangers)}")
        # Both hold in both directions: such pairs are never negatives.
        near_keys = {k for k in keys if k in _near(entry) or key in _near(keys[k])}
        unrelated = [k for k in keys if keys[k]["split"] == split and k != key and k not in near_keys]
        for value, own in entry["memories"].items():
            memory = f"{key}: {value}"
            positives = [*own["messages"], *entry["messages"]]
            if len(positives) < 5:
                raise SourceError(f"{memory}: {len(positives)} messages recall it, at least 5 are needed")
            siblings = [m for v, o in entry["memories"].items() if v != value for m in o["messages"]]
            generator = _generator(memory)
            near = _pick(generator, [m for k in entry["related"] for m in keys[k]["messages"]], RELATED)
            far = _pick(generator, [m for k in unrelated for m in _all_messages(keys[k])], NEGATIVES)
            talk = _pick(generator, source["smalltalk"][split], SMALLTALK)
            scored = [(m, 1.0) for m in positives]
            scored += [(m, 0.5) for m in [*siblings[:4], *near]]
            scored += [(m, 0.0) for m in [*own["unlike"], *far, *talk]]
            best: dict[str, float] = {}
            for message, score in scored:  # a message that occurs twice keeps its higher score
                best[message] = max(score, best.get(message, 0.0))
            pairs += [
                {"memory": memory, "message": message, "score": score, "split": split}
                for message, score in best.items()
            ]
    return pairs


def render(pairs: list[dict[str, Any]]) -> str:
    """Pairs as JSON Lines."""
    return "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)


def _near(entry: dict[str, Any]) -> list[str]:
    return [*entry["related"], *entry.get("unsure", [])]


def _all_messages(entry: dict[str, Any]) -> list[str]:
    return [*entry["messages"], *(m for own in entry["memories"].values() for m in own["messages"])]


def _pick(generator: np.random.Generator, messages: list[str], count: int) -> list[str]:
    count = min(count, len(messages))
    return [messages[i] for i in generator.choice(len(messages), size=count, replace=False)] if count else []


def _generator(memory: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(memory.encode()).digest()[:8], "big"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed file, write nothing")
    arguments = parser.parse_args()
    text = render(make_pairs(yaml.safe_load(SOURCE.read_text(encoding="utf-8"))))
    if arguments.check:
        if PAIRS.read_text(encoding="utf-8") != text:
            print(f"{PAIRS} is not what {SOURCE} gives; run python {Path(__file__).name}", file=sys.stderr)
            return 1
        return 0
    PAIRS.write_text(text, encoding="utf-8")
    print(f"{PAIRS}: {text.count(chr(10))} pairs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
