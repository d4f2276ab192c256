"""Which precision is fastest here, for training and for generation."""

from __future__ import annotations

import torch

from ohlora.config import RuntimeConfig


def uses_bfloat16(runtime: RuntimeConfig, device: torch.device) -> bool:
    """Whether batches are computed in mixed bfloat16; `auto` asks the processor.

    On a CPU it pays with matrix units (AMX) alone: with AVX512-BF16 a training step of the default voice took
    4.2 CPU-seconds mixed and 2.7 in float32, since autocast converts the frozen weights every time.
    """
    if runtime.precision != "auto":
        return runtime.precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def trains_in_bfloat16(runtime: RuntimeConfig, device: torch.device, full: bool) -> bool:
    """Whether a training computes in bfloat16; a frozen base is then held in bfloat16 as well.

    With nothing to convert, AVX512-BF16 pays too: a step of the default voice takes 2.3 CPU-seconds, and 3.8 in
    float32. A base that is trained in whole (`full`) stays float32, since updates would vanish in bfloat16's
    eight bits, and computes mixed where `uses_bfloat16` says so.
    """
    if runtime.precision == "auto" and device.type == "cpu" and not full:
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return uses_bfloat16(runtime, device)


def inference_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Of generation, token by token: `auto` is bfloat16 on a GPU and float32 on a CPU.

    A single token is bound by memory and not by arithmetic, and torch's bfloat16 matrix-vector products on a
    CPU are slower than what they save (benchmarks/voice_engines.py).
    """
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
