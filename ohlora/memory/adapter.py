"""Adapters of the memory encoder: saved small, merged into their base for the product.

An adapter folder is of kind `memory`: LoRA weights (Hu et al. 2021, arXiv:2106.09685) in peft's format, or
all weights where the base is so small that it was trained whole. It belongs to one base, named by its digest.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import Module
from transformers import PreTrainedModel

from ohlora.artifacts import ArtifactError, Manifest, verify, write_manifest
from ohlora.memory.encoder import Encoder, encoder_settings, load_network, load_tokenizer

if TYPE_CHECKING:
    from peft import PeftModel

LORA_WEIGHTS = "adapter_model.safetensors"
LORA_CONFIG = "adapter_config.json"
FULL_WEIGHTS = "model.safetensors"


def add_lora(model: PreTrainedModel, rank: int, seed: int) -> PeftModel:
    """Wrap every linear layer; only the low-rank parts train. `seed` draws their first weights."""
    from peft import LoraConfig, get_peft_model  # takes seconds, and who only embeds needs none of it

    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def continue_lora(model: PreTrainedModel, adapter: Path) -> PeftModel:
    """Wrap a base with the low-rank parts of a verified adapter, which train on."""
    from peft import PeftModel

    wrapped = PeftModel.from_pretrained(model, str(adapter), is_trainable=True, use_safetensors=True)
    return wrapped.float()  # saved as float16, in which steps are lost


def save_adapter(
    model: Module, out: Path, *, base: Manifest, settings: dict[str, Any], provenance: dict[str, Any]
) -> Manifest:
    """Write what training changed, float16, with the digest of the base it belongs to.

    Args:
        model: a `PeftModel`, or a whole trained encoder.
        out: adapter folder, created.
        base: manifest of the base folder.
        settings: what `Encoder` needs beyond the base's settings, and figures worth keeping.
        provenance: data hash, profile, licence.
    """
    from peft import PeftModel

    out.mkdir(parents=True, exist_ok=True)
    if isinstance(model, PeftModel):
        model.save_pretrained(str(out))
        config_path = out / LORA_CONFIG
        config = json.loads(config_path.read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = base.settings["name"]  # peft writes the path of this machine
        config["target_modules"] = sorted(config["target_modules"])  # a set is in any order
        config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (out / "README.md").unlink(missing_ok=True)  # peft's empty template
        weights = load_file(out / LORA_WEIGHTS)
        kind, name, files = "lora", LORA_WEIGHTS, [LORA_WEIGHTS, LORA_CONFIG]
    else:
        weights, kind, name, files = model.state_dict(), "full", FULL_WEIGHTS, [FULL_WEIGHTS]
    save_file({k: v.half().contiguous() for k, v in weights.items()}, out / name, metadata={"format": "pt"})
    (out / name).chmod(0o644)  # safetensors writes for its owner only
    inherited = {key: base.settings[key] for key in ("dimension", "prefixes")}
    return write_manifest(
        out,
        "memory",
        files=files,
        settings={"type": kind, **inherited, **settings},
        base={"name": str(base.settings["name"]), "sha256": base.digest},
        provenance=provenance,
    )


def load_adapted(base: Path, adapter: Path, device: str = "auto") -> Encoder:
    """The encoder that an adapter makes of its base.

    Raises:
        ArtifactError: a folder is corrupt, or the adapter was trained on another base.
    """
    _, manifest = check_pair(base, adapter)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Module = _fold(load_network(base), adapter, manifest)
    return Encoder(model.to(device).eval(), load_tokenizer(base), **encoder_settings(manifest))


def merge(base: Path, adapter: Path, out: Path) -> Manifest:
    """Base and adapter as one self-contained model folder of kind `memory`, float16.

    Raises:
        ArtifactError: a folder is corrupt, or the adapter was trained on another base.
    """
    base_manifest, manifest = check_pair(base, adapter)
    model = _fold(load_network(base), adapter, manifest)
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    (out / FULL_WEIGHTS).chmod(0o644)
    network = {FULL_WEIGHTS, "config.json"}
    tokenizer = base_manifest.files.keys() - network
    for name in tokenizer:
        shutil.copyfile(base / name, out / name)
    return write_manifest(
        out,
        "memory",
        files=sorted(network | tokenizer),
        settings={**manifest.settings, "merged": True},
        base=manifest.base,
        provenance={**manifest.provenance, "adapter_sha256": manifest.digest},
    )


def check_pair(base: Path, adapter: Path) -> tuple[Manifest, Manifest]:
    """Verify both folders and that the adapter belongs to this base.

    Raises:
        ArtifactError: a folder is corrupt, or the adapter was trained on another base.
    """
    base_manifest, manifest = verify(base, "base-encoder"), verify(adapter, "memory")
    trained_on = str(manifest.base.get("sha256"))
    if trained_on != base_manifest.digest:
        raise ArtifactError(
            f"{adapter} was trained on base {manifest.base.get('name')!r} ({trained_on[:12]}…), "
            f"but {base} is {base_manifest.settings.get('name')!r} ({base_manifest.digest[:12]}…); "
            "run the stages base_encoder and memory again"
        )
    return base_manifest, manifest


def _fold(model: PreTrainedModel, adapter: Path, manifest: Manifest) -> PreTrainedModel:
    """Add what a verified adapter changes to the weights of its base."""
    try:
        if manifest.settings["type"] == "full":
            model.load_state_dict(load_file(adapter / FULL_WEIGHTS))
            return model
        from peft import PeftModel

        wrapped = PeftModel.from_pretrained(model, str(adapter), use_safetensors=True)
        merged: PreTrainedModel = wrapped.merge_and_unload()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ArtifactError(f"{adapter} does not fit its base: {error}") from error
    return merged
