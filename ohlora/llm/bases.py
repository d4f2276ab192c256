"""Stage `base_llm`: the base model that she learns to talk on, as a Hugging Face folder with a manifest.

- `gemma3-270m`: Gemma 3 270M from the package index, pruned to Korean (`ohlora.llm.gemma`). The default.
- `scratch-neox`: a tiny GPT-NeoX with seeded random weights, for tests; learns, but has nothing to say.
- `hub`: any causal model of a hub or a local folder, from safetensors only and without code of others.

`settings["trains"]` of the manifest says how SFT has to train it: a pretrained base by LoRA ("lora"), a
random one in whole ("full"), since low-rank changes of random weights learn nothing.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ohlora.artifacts import ArtifactError, Manifest, write_manifest
from ohlora.config import Config, ScratchLLMConfig
from ohlora.llm import gemma
from ohlora.llm.hangul import hangul_support, require_hangul
from ohlora.llm.weights import open_to_all
from ohlora.stage import Journal, Report

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

KIND = "base-llm"
PAD, END, BEGIN, UNKNOWN = "<pad>", "<eos>", "<bos>", "<unk>"
SAMPLE = "안녕, 나는 오로라야! 오늘 하루는 어땠어? 😊"


def run(config: Config, inputs: dict[str, Path], outputs: dict[str, Path], journal: Journal) -> Report:
    """Write the base model of `voice.base` into the output folder.

    Raises:
        ArtifactError: packages are missing or differ from their pin, or a hub model cannot be used.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = outputs["output"]
    manifest = build(config, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    architecture = AutoConfig.from_pretrained(folder, local_files_only=True)
    tokens = tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
    hangul = hangul_support(tokenizer)
    return Report(
        metrics={
            "parameters": float(manifest.settings["parameters"]),
            "vocabulary": float(architecture.vocab_size),
            "characters_per_token": len(SAMPLE) / len(tokens),
            "hangul_share": hangul.share,
            "tokens_per_syllable": hangul.tokens_per_syllable,
            "megabytes": sum((folder / name).stat().st_size for name in manifest.files) / 1e6,
        },
        tables={"Base model": [{"key": k, "value": str(v)} for k, v in manifest.settings.items()]},
        notes=[f"licence: {manifest.provenance['licence']}"],
    )


def build(config: Config, folder: Path) -> Manifest:
    """Build the base of `config.voice` in `folder` (emptied before) and write its manifest."""
    voice = config.voice
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if voice.base == "gemma3-270m":
        gemma.convert(folder)
        source = {
            "package": f"{gemma.PACKAGE}=={gemma.PACKAGE_VERSION}",
            "gguf_sha256": gemma.GGUF_SHA256,
            "licence": gemma.LICENCE,
        }
        return _describe(folder, voice.base, "lora", source)
    if voice.base == "scratch-neox":
        build_scratch(voice.scratch, folder)
        return _describe(folder, voice.base, "full", {"licence": "that of this project: random weights"})
    licence = download(voice.hub_name, folder)
    return _describe(folder, voice.hub_name, "lora", {"hub_name": voice.hub_name, "licence": licence})


def build_scratch(sizes: ScratchLLMConfig, folder: Path) -> None:
    """Save a GPT-NeoX (arXiv:2204.06745) with random weights from `sizes.seed`, float32."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    tokenizer = character_tokenizer(sizes.context)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=4 * sizes.hidden_size,
        max_position_embeddings=sizes.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):  # transformers draws initial weights from the global generator
        torch.manual_seed(sizes.seed)
        model = GPTNeoXForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def character_tokenizer(context: int) -> PreTrainedTokenizerFast:
    """One token per character of KS X 1001's 2,350 syllables and of ASCII, bytes for everything else.

    Needs no text to be built from, and decodes whatever it encodes.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    specials = [PAD, END, BEGIN, UNKNOWN]
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    ascii_characters = [chr(code) for code in (9, 10, *range(32, 127))]
    syllables = [
        bytes((row, cell)).decode("euc-kr") for row in range(0xB0, 0xC9) for cell in range(0xA1, 0xFF)
    ]
    pieces = specials + raw + ascii_characters + syllables
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN, byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A {BEGIN} $B",
        special_tokens=[(BEGIN, vocabulary[BEGIN])],
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        model_max_length=context,
    )


def download(name: str, folder: Path) -> str:
    """Save a causal model and its tokenizer from a hub or a local folder; returns its licence.

    Raises:
        ArtifactError: no name, the model cannot be loaded without pickle and without code of others, or its
            tokenizer lacks Hangul.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not name:
        raise ArtifactError("voice.base is 'hub' but voice.hub_name is empty: name a model or a local folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        require_hangul(tokenizer, name)  # before gigabytes of weights are read
        model = AutoModelForCausalLM.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, dtype="auto"
        )
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{name} cannot be loaded as a causal language model (safetensors only, no remote code): {error}"
        ) from error
    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        raise ArtifactError(f"{name} needs a fast tokenizer with an end token")
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        # a pad token that is the end token would be masked out of the loss, and she would never stop
        tokenizer.add_special_tokens({"pad_token": PAD})
        if len(tokenizer) > model.config.vocab_size:  # some have rows to spare
            model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"see the model card of {name}"


def _describe(folder: Path, name: str, trains: str, provenance: dict[str, Any]) -> Manifest:
    from safetensors import safe_open

    parameters = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="np") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (a safe_open handle does not iterate)
                size = 1
                for length in tensors.get_slice(key).get_shape():
                    size *= length
                parameters += size
    for path in folder.glob("*config.json"):
        _drop_version(path)
    open_to_all(folder)
    return write_manifest(
        folder,
        KIND,
        files=[str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()],
        settings={"name": name, "trains": trains, "parameters": parameters},
        provenance=provenance,
    )


def _drop_version(path: Path) -> None:
    """The digest names weights and settings, not the transformers version that wrote them down."""
    values = json.loads(path.read_text(encoding="utf-8"))
    values.pop("transformers_version", None)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
