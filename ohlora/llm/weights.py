"""Base plus adapter: loading them, and merging them into the one folder that a product ships.

An adapter folder (kind "voice") is either low-rank (`settings["type"] == "lora"`) or holds all weights of the
network ("full", what a random base gets). Callers do not see the difference.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ohlora.artifacts import MANIFEST, ArtifactError, Manifest, verify, write_manifest
from ohlora.persona.prompt import TURN_FORMAT

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BASE_KIND, KIND = "base-llm", "voice"
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


def pick_device(device: str) -> torch.device:
    """`auto` takes a GPU when there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder.

    Raises:
        ArtifactError: it has none that runs without Python per token.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise ArtifactError(f"{folder} has no fast tokenizer")
    fast: PreTrainedTokenizerFast = tokenizer
    return fast


def load_network(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The causal network of a Hugging Face folder; the caller has verified the folder.

    Raises:
        ArtifactError: the weights do not load.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{folder} does not load as a causal language model: {error}") from error
    return model


def check_pair(base: Path, adapter: Path) -> tuple[Manifest, Manifest]:
    """Verify both folders and that the adapter was trained on this base.

    Raises:
        ArtifactError: a folder is damaged, or the base is another one.
    """
    base_manifest, manifest = verify(base, BASE_KIND), verify(adapter, KIND)
    expected = manifest.base.get("sha256", "")
    if expected != base_manifest.digest:
        raise ArtifactError(
            f"{adapter} was trained on base {manifest.base.get('name', '?')} ({expected[:12]}…), "
            f"but {base} holds {base_manifest.settings['name']} ({base_manifest.digest[:12]}…); "
            "set voice.base to that base, or train the voice again"
        )
    return base_manifest, manifest


def load_adapted(
    base: Path, adapter: Path, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The network with the adapter folded in, in eval mode, and its tokenizer.

    Raises:
        ArtifactError: see `check_pair`; or the adapter does not fit.
    """
    _, manifest = check_pair(base, adapter)
    tokenizer = load_tokenizer(base)
    if manifest.settings["type"] == "full":
        return load_network(adapter, dtype).eval(), tokenizer
    model: Any = fold(load_network(base, torch.float32), adapter, manifest)
    return model.to(dtype).eval(), tokenizer


def fold(model: PreTrainedModel, adapter: Path, manifest: Manifest) -> PreTrainedModel:
    """Add the low-rank changes of a verified adapter folder to the weights of its base."""
    from peft import PeftModel

    if not {ADAPTER_WEIGHTS, ADAPTER_CONFIG} <= set(manifest.files):
        raise ArtifactError(f"{adapter / MANIFEST} does not list {ADAPTER_WEIGHTS} and {ADAPTER_CONFIG}")
    try:
        adapted = PeftModel.from_pretrained(model, adapter, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{adapter} does not fit its base: {error}") from error
    merged: Any = adapted.merge_and_unload()
    return merged


class DoesNotFit(ValueError):
    """An adapter cannot be continued on this base; the message is the rest of a sentence about it."""


def take_adapter(network: Any, folder: Path, base: Manifest, alpha: int) -> Manifest:
    """Give a network with fresh low-rank adapters the weights of a trained one.

    Args:
        network: what `peft.get_peft_model` made, or a network without adapters.
        folder: of kind "voice".
        base: manifest of the network's base.
        alpha: the scale of the network's adapters.

    Raises:
        ArtifactError: the folder is missing or corrupt.
        DoesNotFit: it was made for another base, shape or format of a turn; nothing changed.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    manifest = verify(folder, KIND)
    if manifest.settings["type"] != "lora" or not hasattr(network, "peft_config"):
        raise DoesNotFit("is no low-rank adapter, or the base takes none")
    if manifest.base.get("sha256") != base.digest:
        raise DoesNotFit(f"adapts another base ({manifest.base.get('name', '?')})")
    if manifest.settings.get("turn") != TURN_FORMAT:
        raise DoesNotFit("speaks another format of a turn")
    weights = load_file(folder / ADAPTER_WEIGHTS)
    own = {name: value.shape for name, value in get_peft_model_state_dict(network).items()}
    settings = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    if own != {name: value.shape for name, value in weights.items()} or settings["lora_alpha"] != alpha:
        raise DoesNotFit("has another rank, scale or other target modules than the settings")
    set_peft_model_state_dict(network, {name: value.float() for name, value in weights.items()})
    return manifest


def load_trainable(base: Path, adapter: Path, manifest: Manifest, dtype: torch.dtype) -> Any:
    """A base with a trained adapter on it that can be trained on; not folded in.

    Args:
        base: verified folder of the base.
        adapter: verified folder of the adapter.
        manifest: of the adapter.
        dtype: in which a frozen base is held; the adapter, or a network that is trained in whole, is float32.

    Raises:
        ArtifactError: the weights do not load or do not fit.
    """
    from peft import PeftModel

    if manifest.settings["type"] == "full":
        return load_network(adapter, torch.float32)
    try:
        return PeftModel.from_pretrained(
            load_network(base, dtype), adapter, is_trainable=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{adapter} does not fit its base: {error}") from error


def save_voice(
    network: Any,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    base: Manifest,
    provenance: Mapping[str, Any],
) -> Manifest:
    """Write the adapter as float16 safetensors (or all weights of a random base) and its manifest.

    Args:
        network: trained; its adapter "default" is written if it has adapters.
        tokenizer: of the base; goes along where all weights do.
        folder: exists; other files in it stay and are not listed.
        base: manifest of the base.
        provenance: where it comes from; the base's licence is added.
    """
    kind = "lora" if hasattr(network, "peft_config") else "full"
    if kind == "full":
        before = {path.name for path in folder.iterdir()}
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        files = sorted({path.name for path in folder.iterdir() if path.is_file()} - before)
    else:
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        files = [ADAPTER_WEIGHTS, ADAPTER_CONFIG]
        weights = {k: v.half().cpu().contiguous() for k, v in get_peft_model_state_dict(network).items()}
        save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        settings = copy.copy(network.peft_config["default"])
        settings.base_model_name_or_path = base.settings["name"]  # peft would write a path of this machine
        settings.inference_mode = True
        if isinstance(settings.target_modules, set):  # in another order in each process, and so another hash
            settings.target_modules = sorted(settings.target_modules)
        settings.save_pretrained(folder)
    open_to_all(folder)
    return write_manifest(
        folder,
        KIND,
        files=files,
        settings={"type": kind, "base": base.settings["name"], "turn": TURN_FORMAT},
        base={"name": base.settings["name"], "sha256": base.digest},
        provenance={**provenance, "licence": base.provenance.get("licence", "")},
    )


def merge(base: Path, adapter: Path, out: Path) -> Manifest:
    """Write base and adapter as one model folder of kind "voice" (`settings["merged"]` is true).

    Weights keep the precision of the base. Files of the base that are no weights (its terms, its tokenizer)
    come along.

    Raises:
        ArtifactError: see `check_pair`.
    """
    base_manifest, manifest = check_pair(base, adapter)
    source = adapter if manifest.settings["type"] == "full" else base
    dtype = _stored_dtype(source)
    model: Any = load_adapted(base, adapter, torch.float32)[0]
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    model.to(dtype).save_pretrained(out)
    for name in base_manifest.files:
        if not name.endswith(".safetensors") and not (out / name).exists():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(base / name, out / name)
    open_to_all(out)
    return write_manifest(
        out,
        KIND,
        files=[str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()],
        settings=manifest.settings | {"merged": True},
        base=manifest.base,
        provenance={**base_manifest.provenance, **manifest.provenance, "adapter": manifest.digest},
    )


def open_to_all(folder: Path) -> None:
    """safetensors writes with mode 0600; a service that runs as another user must be able to read."""
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)


def _stored_dtype(folder: Path) -> torch.dtype:
    from transformers import AutoConfig

    dtype = AutoConfig.from_pretrained(folder, local_files_only=True).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32
