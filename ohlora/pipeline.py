"""The pipeline as one table, and the one way to run a stage of it."""

from __future__ import annotations

from ohlora.stage import Stage

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            name="corpus",
            entry="ohlora.corpus.stage:run",
            inputs={"sample": "data/portraits"},
            output="artifacts/corpus",
            params=("corpus",),
            code=("ohlora/corpus",),
        ),
        Stage(
            name="parser",
            entry="ohlora.labeling.parser:train",
            inputs={"corpus": "artifacts/corpus"},
            output="artifacts/parser",
            model="labeler",
            params=("labeling", "runtime"),
            code=("ohlora/labeling",),
        ),
        Stage(
            name="labels",
            entry="ohlora.labeling.stage:run",
            inputs={"corpus": "artifacts/corpus", "parser": "artifacts/parser"},
            output="artifacts/labels",
            params=("runtime",),
            code=("ohlora/labeling",),
        ),
        Stage(
            name="judge",
            entry="ohlora.evaluation.judge:train",
            inputs={"corpus": "artifacts/corpus"},
            output="artifacts/judge",
            params=("judge", "runtime"),
            code=("ohlora/evaluation/judge.py",),
        ),
        Stage(
            name="face",
            entry="ohlora.gan.training:train",
            inputs={
                "corpus": "artifacts/corpus",
                "labels": "artifacts/labels",
                "judge": "artifacts/judge",
            },
            output="artifacts/face",
            model="face",
            params=("face", "runtime"),
            code=("ohlora/gan",),
        ),
        Stage(
            name="base_llm",
            entry="ohlora.llm.bases:run",
            output="artifacts/base_llm",
            params=("voice.base", "voice.hub_name"),
            code=("ohlora/llm/bases.py",),
        ),
        Stage(
            name="dialogues",
            entry="ohlora.persona.dialogues:run",
            inputs={"persona": "data/persona"},
            output="artifacts/dialogues",
            params=("persona",),
            code=("ohlora/persona",),
        ),
        Stage(
            name="voice",
            entry="ohlora.llm.sft:train",
            inputs={"base": "artifacts/base_llm", "dialogues": "artifacts/dialogues"},
            output="artifacts/voice",
            model="voice",
            params=("voice", "runtime"),
            code=("ohlora/llm",),
        ),
        Stage(
            name="base_encoder",
            entry="ohlora.memory.bases:run",
            output="artifacts/base_encoder",
            params=("memory.base", "memory.hub_name"),
            code=("ohlora/memory/bases.py",),
        ),
        Stage(
            name="memory",
            entry="ohlora.memory.training:train",
            inputs={"base": "artifacts/base_encoder", "pairs": "data/memory"},
            output="artifacts/memory",
            model="memory",
            params=(
                "memory.lora_rank",
                "memory.learning_rate",
                "memory.epochs",
                "memory.batch_size",
                "memory.max_length",
                "memory.seed",
                "runtime",
            ),
            code=("ohlora/memory",),
        ),
        Stage(
            name="package",
            entry="ohlora.package:run",
            inputs={
                "corpus": "artifacts/corpus",
                "judge": "artifacts/judge",
                "parser": "artifacts/parser",
                "face": "artifacts/face",
                "base_llm": "artifacts/base_llm",
                "dialogues": "artifacts/dialogues",
                "voice": "artifacts/voice",
                "base_encoder": "artifacts/base_encoder",
                "memory": "artifacts/memory",
                "starters": "data/starters",
                "persona": "data/persona",
            },
            output="artifacts/package",
            params=("gate", "generation", "memory.threshold", "memory.top_k", "serving"),
            code=("ohlora/chat", "ohlora/evaluation", "ohlora/registry.py", "ohlora/package.py", "serving"),
        ),
    )
}
