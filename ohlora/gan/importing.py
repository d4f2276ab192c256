"""GenForce's StyleGAN checkpoints (`.pth`) as model folders of kind `stylegan`.

A checkpoint is read by torch's restricted unpickler, which builds tensors and plain containers only. The
network's shape is read off the weights, so that checkpoints of any size work; what weights do not tell
(resampling inside convolutions from 128 on) is GenForce's default. A folder holds `generator.safetensors`,
`discriminator.safetensors` or both.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ohlora.artifacts import ArtifactError, Manifest, sha256_file, verify, write_manifest
from ohlora.gan.stylegan import StyleDiscriminator, StyleGANConfig, StyleGenerator

KIND = "stylegan"
GENERATOR, DISCRIMINATOR = "generator.safetensors", "discriminator.safetensors"
NAMED = 5  # parameters that an error message names

SIGNS = (  # names that betray another network of GenForce's zoo
    ("; it looks like StyleGAN2", r"early_layer|noise_strength|^skip_layer"),
    ("; it looks like a StyleGAN generator", r"^synthesis\."),
    ("; it looks like PGGAN or a discriminator", r"^layer0\.weight$"),
)

Part = Literal["generator_smooth", "generator", "discriminator"]
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class StyleGAN:
    """The networks of a model folder; one of them may be missing."""

    config: StyleGANConfig
    generator: StyleGenerator | None
    discriminator: StyleDiscriminator | None
    manifest: Manifest | None = None  # None of networks that were not loaded


def read_checkpoint(path: Path) -> dict[str, dict[str, Tensor]]:
    """The networks of a `.pth` file: part name -> parameter name -> tensor. Nothing in it is executed.

    Raises:
        ArtifactError: there is no such file, it is damaged, it holds more than weights, or none of the parts.
    """
    if not path.is_file():
        raise ArtifactError(f"there is no checkpoint {path}")
    try:
        body: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the restricted unpickler fails in many ways, all of which mean the same
        reason = f"{type(error).__name__}: {str(error).split('. ')[0].strip()}"  # the rest is advice
        raise ArtifactError(
            f"{path} does not load as plain weights: it is no checkpoint, truncated, or holds code ({reason})"
        ) from error
    if isinstance(body, dict) and isinstance(body.get("models"), dict):
        body = body["models"]
    if not isinstance(body, dict):
        raise ArtifactError(f"{path} is no GenForce checkpoint: it holds a {type(body).__name__}")
    parts = {}
    for part in get_args(Part):
        state = body.get(part)
        if not isinstance(state, dict):
            continue
        others = [name for name, value in state.items() if not isinstance(value, Tensor)]
        if others:
            raise ArtifactError(f"{path}: {part} holds more than tensors: {_some(others)}")
        parts[part] = {str(name).removeprefix("module."): value for name, value in state.items()}
    if not parts:
        raise ArtifactError(
            f"{path} is no GenForce checkpoint: it has none of {', '.join(get_args(Part))}; "
            f"it has {_some(body)}"
        )
    return parts


def shape_of_generator(state: State, where: str) -> StyleGANConfig:
    """Shape of the generator whose weights these are.

    Raises:
        ArtifactError: they are of another architecture; the message names what is missing.
    """
    first = (
        "mapping.dense0.weight",
        "truncation.w_avg",
        "synthesis.layer0.const",
        "synthesis.output0.weight",
    )
    _need(state, first, where, "generator")
    layers = _count(state, r"mapping\.dense(\d+)\.weight")
    blocks = _count(state, r"synthesis\.output(\d+)\.weight")
    label = state.get("mapping.label_weight")
    label_dim, embedding = (0, 0) if label is None else (label.shape[0], label.shape[1])
    inputs = state["mapping.dense0.weight"].shape[1]
    channels = {
        4 << block: state[name].shape[1]
        for block in range(blocks)
        if (name := f"synthesis.output{block}.weight") in state
    }
    base, most = _widths(channels, where)
    try:
        return StyleGANConfig(
            resolution=2 << blocks,
            z_dim=inputs - embedding,
            w_dim=state["truncation.w_avg"].shape[0],
            mapping_layers=layers,
            mapping_fmaps=state["mapping.dense0.weight"].shape[0],
            fmaps_base=base,
            fmaps_max=most,
            label_dim=label_dim,
            label_width=0 if embedding == inputs - embedding else embedding,
        )
    except ValueError as error:
        raise ArtifactError(f"{where} is not laid out like GenForce's StyleGAN generator: {error}") from error


def shape_of_discriminator(state: State, where: str) -> StyleGANConfig:
    """Shape of the discriminator whose weights these are; what only generators have keeps its default.

    Raises:
        ArtifactError: they are of another architecture; the message names what is missing.
    """
    _need(state, ("input0.weight", "layer0.weight", "layer1.blur.kernel"), where, "discriminator")
    blocks = _count(state, r"input(\d+)\.weight")
    last = f"layer{2 * blocks}.weight"
    _need(state, (last, f"layer{2 * blocks - 2}.weight"), where, "discriminator")
    channels = {
        (4 << (blocks - 1)) >> block: state[name].shape[0]
        for block in range(blocks)
        if (name := f"input{block}.weight") in state
    }
    base, most = _widths(channels, where)
    scores = state[last].shape[0]
    deviation = state[f"layer{2 * blocks - 2}.weight"].shape[1] > channels[4]
    try:
        return StyleGANConfig(
            resolution=2 << blocks,
            fmaps_base=base,
            fmaps_max=most,
            label_dim=scores if scores > 1 else 0,
            group_size=4 if deviation else 1,
        )
    except ValueError as error:
        raise ArtifactError(
            f"{where} is not laid out like GenForce's StyleGAN discriminator: {error}"
        ) from error


def load_state(network: nn.Module, state: State, where: str) -> None:
    """Put weights into a network.

    Raises:
        ArtifactError: names or shapes differ, or a weight is not finite; the message names them.
    """
    own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {own[name]}"
        for name in own
        if name in state and tuple(state[name].shape) != own[name]
    ]
    problems = [
        f"{title}: {_some(names)}"
        for title, names in (("missing", missing), ("unknown", unknown), ("other shapes", shapes))
        if names
    ]
    if problems:
        raise ArtifactError(f"{where} is of another architecture than StyleGAN; {'; '.join(problems)}")
    broken = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ArtifactError(f"{where} has weights that are NaN or infinite: {_some(broken)}")
    network.load_state_dict({name: value.float() for name, value in state.items()})


def import_checkpoint(
    checkpoint: Path, folder: Path, part: Part = "generator_smooth", discriminator: bool = True
) -> Manifest:
    """Convert a `.pth` file to a model folder.

    Args:
        checkpoint: of GenForce.
        folder: to write.
        part: which of the checkpoint's networks; `generator_smooth` is the averaged generator.
        discriminator: beside a generator store the checkpoint's discriminator, if it has one: fine-tuning
            starts from it.

    Raises:
        ArtifactError: the file is no such checkpoint, lacks the part, or has NaN weights.
    """
    parts = read_checkpoint(checkpoint)
    if part not in parts:
        raise ArtifactError(f"{checkpoint} has no {part}; it has {', '.join(parts)}")
    if part == "discriminator":
        critic = build_discriminator(parts[part], f"{checkpoint}: {part}")
        networks = StyleGAN(critic.config, None, critic)
    else:
        generator = build_generator(parts[part], f"{checkpoint}: {part}")
        networks = StyleGAN(generator.config, generator, None)
        if discriminator and "discriminator" in parts:
            state = parts["discriminator"]
            critic = build_discriminator(state, f"{checkpoint}: discriminator", generator.config)
            networks = dataclasses.replace(networks, discriminator=critic)
    provenance = {
        "checkpoint": sha256_file(checkpoint),
        "part": part,
        "architecture": "GenForce StyleGAN",
        "licence": "that of the checkpoint",
    }
    return save_stylegan(folder, networks, provenance)


def build_generator(state: State, where: str) -> StyleGenerator:
    """The generator that fits weights, with them in it.

    Raises:
        ArtifactError: they are of another architecture or not finite.
    """
    network = StyleGenerator(shape_of_generator(state, where))
    load_state(network, state, where)
    return network.eval()


def build_discriminator(state: State, where: str, like: StyleGANConfig | None = None) -> StyleDiscriminator:
    """The discriminator that fits weights, with them in it.

    Args:
        state: weights.
        where: they came from, for messages.
        like: shape of its generator, which tells what the discriminator's weights cannot.

    Raises:
        ArtifactError: they are of another architecture, not finite, or of another size than the generator.
    """
    shape = shape_of_discriminator(state, where)
    if like is not None:
        if (shape.resolution, shape.channels(4)) != (like.resolution, like.channels(4)):
            raise ArtifactError(
                f"{where} sees {shape.resolution} pixels with {shape.channels(4)} channels at 4, "
                f"its generator draws {like.resolution} with {like.channels(4)}"
            )
        shape = dataclasses.replace(like, group_size=shape.group_size)
    network = StyleDiscriminator(shape)
    load_state(network, state, where)
    return network.eval()


def save_stylegan(folder: Path, networks: StyleGAN, provenance: dict[str, Any]) -> Manifest:
    """Write a model folder of kind `stylegan`; in full precision, so that pictures stay the same."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, network in ((GENERATOR, networks.generator), (DISCRIMINATOR, networks.discriminator)):
        if network is None:
            (folder / name).unlink(missing_ok=True)
            continue
        state = {key: value.detach().contiguous().cpu() for key, value in network.state_dict().items()}
        save_file(state, folder / name)
        files.append(name)
    settings = {"network": asdict(networks.config)}
    return write_manifest(folder, KIND, files=files, settings=settings, provenance=provenance)


def load_stylegan(folder: Path) -> StyleGAN:
    """Read a model folder of kind `stylegan`; networks are on the CPU and in `eval()`.

    Raises:
        ArtifactError: a file is missing or corrupt, or does not fit the settings of the manifest.
    """
    manifest = verify(folder, KIND)
    try:
        config = StyleGANConfig(**manifest.settings["network"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder} does not fit its settings: {error}") from error
    generator = discriminator = None
    if GENERATOR in manifest.files:
        generator = StyleGenerator(config)
        load_state(generator.eval(), load_file(folder / GENERATOR), str(folder / GENERATOR))
    if DISCRIMINATOR in manifest.files:
        discriminator = StyleDiscriminator(config)
        load_state(discriminator.eval(), load_file(folder / DISCRIMINATOR), str(folder / DISCRIMINATOR))
    return StyleGAN(config, generator, discriminator, manifest)


def _widths(channels: Mapping[int, int], where: str) -> tuple[int, int]:
    """`fmaps_base` and `fmaps_max` that give these channels (resolution -> number).

    Raises:
        ArtifactError: none do.
    """
    most = max(channels.values())
    # a base that a resolution does not divide leaves a remainder there: the largest product is the base
    products = [resolution * number for resolution, number in channels.items() if number < most]
    base = max(products, default=most * max(channels))
    if any(min(base // resolution, most) != number for resolution, number in channels.items()):
        raise ArtifactError(
            f"{where}: channels {dict(channels)} do not halve with the resolution as StyleGAN's do"
        )
    return base, most


def _need(state: State, names: tuple[str, ...], where: str, network: str) -> None:
    missing = [name for name in names if name not in state]
    if missing:
        signs = [(title, sign) for title, sign in SIGNS if title != f"; it looks like a StyleGAN {network}"]
        guess = next((title for title, sign in signs if any(re.search(sign, name) for name in state)), "")
        raise ArtifactError(
            f"{where} is not laid out like GenForce's StyleGAN {network}{guess}; "
            f"missing: {_some(missing)}; it has: {_some(sorted(state))}"
        )


def _count(state: State, pattern: str) -> int:
    return len({name for name in state if re.fullmatch(pattern, name)})


def _some(names: Any) -> str:
    listed = [str(name) for name in names]
    rest = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return (", ".join(listed[:NAMED]) or "nothing") + rest
