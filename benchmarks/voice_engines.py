"""What computes the voice, side by side: tokens per second, time to the first token, nearness to float32.

    python benchmarks/voice_engines.py artifacts/base_llm artifacts/voice

Every engine writes the same prompts greedily, in turns, so that what else the machine does hits all alike;
the figures that travel are the ratios to transformers in float32. `torchao` and `ctranslate2` take part where
they are installed; an engine that fails is listed with its reason. Prints a table and, last, a line of JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ohlora.llm.networks import Network, Session, TransformersNetwork
from ohlora.llm.openvino_network import OpenVINONetwork
from ohlora.llm.weights import load_adapted
from ohlora.persona import load_card, render_prompt
from ohlora.persona.prompt import turn_grammar

CARD = load_card(Path(__file__).parents[1] / "data" / "persona" / "ohlora.yaml")
MESSAGES = [
    "안녕! 오늘 하루는 어땠어? 나는 떡볶이 먹고 산책했어.",
    "너 이름이 뭐야? 어느 학교 다녀?",
    "요즘 시험 때문에 너무 힘들어. 어떻게 하면 좋을까?",
    "내 생일 언제인지 기억해?",
]


def dynamic_int8(model: Any) -> Network:
    """torch's dynamic quantisation: int8 weights, activations quantised for each product."""
    linears = {torch.nn.Linear}
    return TransformersNetwork(
        torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), linears, dtype=torch.qint8)
    )


def torchao_int8(model: Any) -> Network:
    """torchao's weight-only int8, not compiled (compiling needs a C++ compiler on the person's machine)."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantised = copy.deepcopy(model)
    quantize_(quantised, Int8WeightOnlyConfig())
    return TransformersNetwork(quantised)


def ctranslate2_figures(model: Any, tokenizer: Any, prompt: torch.Tensor, tokens: int) -> dict[str, Any]:
    """Speed of CTranslate2's own loop, which takes no mask of allowed tokens: no format can be enforced."""
    import ctranslate2

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source", Path(folder) / "target"
        model.save_pretrained(source)
        tokenizer.save_pretrained(source)
        ctranslate2.converters.TransformersConverter(str(source)).convert(str(target), quantization="int8")
        generator = ctranslate2.Generator(str(target), intra_threads=torch.get_num_threads())
        pieces = tokenizer.convert_ids_to_tokens(prompt[0].tolist())

        def seconds(length: int) -> float:
            start = time.perf_counter()
            generator.generate_batch(
                [pieces], max_length=length, min_length=length, include_prompt_in_result=False, end_token=[]
            )
            return time.perf_counter() - start

        seconds(2)
        first = statistics.median(seconds(1) for _ in range(3))
        whole = statistics.median(seconds(tokens) for _ in range(3))
    return {
        "tokens_per_second": round((tokens - 1) / (whole - first), 1),
        "first_token_seconds": round(first, 3),
    }


def engines(model: Any) -> dict[str, Callable[[], Network]]:
    return {
        "transformers float32": lambda: TransformersNetwork(model),
        "transformers bfloat16": lambda: TransformersNetwork(copy.deepcopy(model).bfloat16()),
        "torch dynamic int8": lambda: dynamic_int8(model),
        "torchao int8 weights": lambda: torchao_int8(model),
        "openvino float32": lambda: OpenVINONetwork(model, "float32"),
        "openvino int8 weights": lambda: OpenVINONetwork(model),
    }


def greedy(session: Session, ids: torch.Tensor, tokens: int) -> tuple[torch.Tensor, list[int], float, float]:
    """Logits after the prompt, the tokens, seconds to the first and seconds of each further one."""
    start = time.perf_counter()
    mask, step, written = torch.ones_like(ids), ids, []
    for number in range(tokens):
        logits = session.forward(step, mask)[0]
        written.append(int(logits.argmax()))
        step = torch.tensor([[written[-1]]])
        mask = torch.cat([mask, torch.ones_like(step)], dim=1)
        if number == 0:
            first_logits, first = logits, time.perf_counter() - start
    session.close()
    return first_logits, written, first, (time.perf_counter() - start - first) / (tokens - 1)


def mask_seconds(tokenizer: Any, vocabulary: int, turns: int = 50) -> float:
    """Median seconds that the mask of a turn costs a token, over random turns."""
    from ohlora.llm.turn_mask import TokenTable, TurnAutomaton, TurnState

    automaton = TurnAutomaton(turn_grammar(CARD), TokenTable.of(tokenizer, vocabulary))
    generator, spent = np.random.default_rng(0), []
    for _ in range(turns):
        state = TurnState(automaton, 96)
        while not state.done:
            start = time.perf_counter()
            allowed = np.flatnonzero(state.allowed())
            spent.append(time.perf_counter() - start)
            state.accept(int(generator.choice(allowed)))
    return statistics.median(spent)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=0, help="0 takes torch's number")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model, tokenizer = load_adapted(arguments.base, arguments.adapter)
    prompts = [
        torch.tensor([tokenizer(render_prompt(CARD, [], [], message))["input_ids"]]) for message in MESSAGES
    ]
    ready: dict[str, Network] = {}
    figures: dict[str, dict[str, Any]] = {}
    for name, prepare in engines(model).items():
        start = time.perf_counter()
        try:
            ready[name] = prepare()
            greedy(ready[name].start(), prompts[0], 2)  # warms up
            figures[name] = {"load_seconds": round(time.perf_counter() - start, 2)}
        except Exception as error:
            ready.pop(name, None)
            figures[name] = {"fails": f"{type(error).__name__}: {error}"[:200]}
    try:
        figures["ctranslate2 int8"] = ctranslate2_figures(model, tokenizer, prompts[0], arguments.tokens)
    except Exception as error:
        figures["ctranslate2 int8"] = {"fails": f"{type(error).__name__}: {error}"[:200]}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ready}
    outputs: dict[str, list[tuple[torch.Tensor, list[int]]]] = {name: [] for name in ready}
    for round_number in range(arguments.rounds):
        prompt = prompts[round_number % len(prompts)]
        for name, network in ready.items():
            logits, written, first, each = greedy(network.start(), prompt, arguments.tokens)
            seconds[name].append((first, each))
            outputs[name].append((logits, written))
    reference = "transformers float32"
    for name in ready:
        each = statistics.median(step for _, step in seconds[name])
        figures[name] |= {
            "tokens_per_second": round(1 / each, 1),
            "first_token_seconds": round(statistics.median(first for first, _ in seconds[name]), 3),
            "times_float32": round(
                statistics.median(
                    theirs / ours
                    for (_, theirs), (_, ours) in zip(seconds[reference], seconds[name], strict=True)
                ),
                2,
            ),
            "same_tokens": round(
                statistics.mean(
                    a == b
                    for (_, ours), (_, theirs) in zip(outputs[name], outputs[reference], strict=True)
                    for a, b in zip(ours, theirs, strict=True)
                ),
                3,
            ),
            "logit_error": round(
                statistics.mean(
                    float((ours - theirs).abs().mean() / theirs.std())
                    for (ours, _), (theirs, _) in zip(outputs[name], outputs[reference], strict=True)
                ),
                4,
            ),
        }
    columns = [
        "tokens_per_second",
        "times_float32",
        "first_token_seconds",
        "load_seconds",
        "same_tokens",
        "logit_error",
    ]
    print(f"{'engine':<22}" + "".join(f"{column:>21}" for column in columns))
    for name, row in figures.items():
        shown = row.get("fails") or "".join(f"{row.get(column, '-'):>21}" for column in columns)
        print(f"{name:<22}{shown}")
    mask = mask_seconds(tokenizer, model.config.vocab_size)
    print(f"mask of allowed tokens: {mask * 1e6:.0f} µs a token")
    setting = {"threads": torch.get_num_threads(), "rounds": arguments.rounds, "tokens": arguments.tokens}
    print(json.dumps({"benchmark": "voice_engines", **setting, "mask_seconds": mask, "engines": figures}))


if __name__ == "__main__":
    main()
