"""How fast she talks: tokens per second and time to the first token, by precision.

    python benchmarks/voice_generation.py artifacts/base_llm artifacts/voice

Prints a table and, last, one line of JSON. Greedy, so that every precision writes about the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from ohlora.config import GenerationConfig
from ohlora.llm import Voice
from ohlora.llm.weights import pick_device

PROMPT = "사용자: 안녕! 오늘 하루는 어땠어? 나는 떡볶이 먹고 산책했어.\n오로라:"


def measure(voice: Voice, rounds: int, tokens: int) -> dict[str, float]:
    """Medians over `rounds` completions of `tokens` tokens each."""
    config = GenerationConfig(max_new_tokens=tokens, temperature=0.0)
    voice._ends = set()  # every round writes the same number of tokens
    first, rest = [], []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        stamps = [time.perf_counter() for _ in voice._tokens(PROMPT, torch.Generator(), config)]
        first.append(stamps[0] - start)
        rest.append((len(stamps) - 1) / (stamps[-1] - stamps[0]))
    return {  # the first round warms up
        "tokens_per_second": round(statistics.median(rest[1:]), 1),
        "first_token_seconds": round(statistics.median(first[1:]), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32)
    arguments = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    print(f"{'precision':<10} {'load s':>7} {'tokens/s':>9} {'first token s':>14}")
    for precision in ("float32", "bfloat16"):
        start = time.perf_counter()
        voice = Voice.load_pair(arguments.base, arguments.adapter, arguments.device, precision)
        loaded = round(time.perf_counter() - start, 2)
        figures[precision] = {"load_seconds": loaded, **measure(voice, arguments.rounds, arguments.tokens)}
        row = figures[precision]
        print(f"{precision:<10} {loaded:>7} {row['tokens_per_second']:>9} {row['first_token_seconds']:>14}")
    setting = {"device": str(pick_device(arguments.device)), "threads": torch.get_num_threads()}
    print(json.dumps({"benchmark": "voice_generation", **setting, "precisions": figures}))


if __name__ == "__main__":
    main()
