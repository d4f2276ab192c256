"""A teacher for portraits without masks: the parsing path of a FaceXFormer checkpoint.

FaceXFormer (Narayan et al. 2024, arXiv:2403.12960) puts a Swin transformer under a two-way attention decoder
with one token per task. Only what parsing needs is built and kept; sizes are read off the weights, so that a
tiny checkpoint of the same layout works like the published one. A checkpoint (`.pt`, `.pth`) is read by
torch's restricted unpickler, which builds tensors and plain containers only, and is stored as safetensors.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ohlora.artifacts import ArtifactError, sha256_file, verify, write_manifest
from ohlora.attributes import FaceClass

KIND = "teacher"
WEIGHTS = "teacher.safetensors"
HUB = "hub:"
STATE_KEY = "state_dict_backbone"  # where the published checkpoint keeps its weights
CLASSES = 11  # the first of FaceClass; what it calls background has ears, neck and clothes in it
UNSEEN = (FaceClass.EARS, FaceClass.NECK, FaceClass.CLOTHES)
TASK_TOKENS = (
    "landmarks",
    "pose",
    "attribute",
    "visibility",
    "age",
    "gender",
    "race",
)  # before those of masks
HEADS = 8  # of the decoder's attention: the one size that weights do not tell
RESOLUTION = 224
OPINION_RESOLUTION = 112
BATCH = 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in 0..1


class Attention(nn.Module):
    """Attention of queries [n, q, c] to keys and values [n, k, c], in a space of its own width."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = [
            layer(x).unflatten(2, (HEADS, -1)).transpose(1, 2)
            for layer, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        ]
        seen = F.scaled_dot_product_attention(*heads)
        projected: Tensor = self.out_proj(seen.transpose(1, 2).flatten(2))
        return projected


class TwoWayBlock(nn.Module):
    """Tokens look at each other and at the picture, then the picture looks at the tokens."""

    def __init__(self, width: int, hidden: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(width, width)
        self.cross_attn_token_to_image = Attention(width, width // 2)
        self.cross_attn_image_to_token = Attention(width, width // 2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(width) for _ in range(4))
        self.mlp = nn.ModuleDict({"lin1": nn.Linear(width, hidden), "lin2": nn.Linear(hidden, width)})

    def forward(self, tokens: Tensor, pixels: Tensor, start: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        if self.first:  # there is nothing to add to yet
            tokens = self.norm1(self.self_attn(tokens, tokens, tokens))
        else:
            asked = tokens + start
            tokens = self.norm1(tokens + self.self_attn(asked, asked, tokens))
        seen = self.cross_attn_token_to_image(tokens + start, pixels + place, pixels)
        tokens = self.norm2(tokens + seen)
        tokens = self.norm3(tokens + self.mlp["lin2"](F.relu(self.mlp["lin1"](tokens))))
        told = self.cross_attn_image_to_token(pixels + place, tokens + start, tokens)
        return tokens, self.norm4(pixels + told)


class TwoWayTransformer(nn.Module):
    def __init__(self, width: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(width, hidden, first=i == 0) for i in range(depth))
        self.final_attn_token_to_image = Attention(width, width // 2)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(self, pixels: Tensor, place: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        tokens = start
        for layer in self.layers:
            tokens, pixels = layer(tokens, pixels, start, place)
        seen = self.final_attn_token_to_image(tokens + start, pixels + place, pixels)
        return self.norm_final_attn(tokens + seen), pixels


class ChannelNorm(nn.Module):
    """Layer norm over the channels of [n, c, h, w]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        last = x.permute(0, 2, 3, 1)
        return F.layer_norm(last, last.shape[-1:], self.weight, self.bias, 1e-6).permute(0, 3, 1, 2)


class FaceXFormerParser(nn.Module):
    """float32 [n, 3, 224, 224], normalised as ImageNet -> logits float32 [n, 11, 224, 224].

    Module names are those of the published checkpoint.
    """

    def __init__(
        self,
        embed: int,  # channels of the first Swin stage
        depths: list[int],  # blocks of each Swin stage
        heads: list[int],  # of the attention in each Swin stage
        window: int,  # pixels of a Swin window
        width: int,  # channels of the decoder
        hidden: int,  # of the decoder's perceptrons
        decoder_depth: int,
    ) -> None:
        super().__init__()
        from torchvision.models.swin_transformer import SwinTransformer

        swin = SwinTransformer([4, 4], embed, depths, heads, [window, window], num_classes=1)
        self.backbone = nn.ModuleDict({"0": swin.features})
        self.linear_c = nn.ModuleList(
            nn.ModuleDict({"proj": nn.Linear(embed * 2**i, width)}) for i in range(len(depths))
        )
        self.linear_fuse = nn.Conv2d(width * len(depths), width, 1, bias=False)
        self.pe_layer = nn.Module()
        self.pe_layer.register_buffer("positional_encoding_gaussian_matrix", torch.zeros(2, width // 2))
        decoder = nn.Module()
        decoder.transformer = TwoWayTransformer(width, hidden, decoder_depth)
        for name in TASK_TOKENS:
            setattr(decoder, f"{name}_token", nn.Embedding(1, width))
        decoder.mask_tokens = nn.Embedding(CLASSES, width)
        decoder.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, 2, stride=2),
            ChannelNorm(width // 4),
            nn.GELU(),
            nn.ConvTranspose2d(width // 4, width // 8, 2, stride=2),
            nn.GELU(),
        )
        decoder.output_hypernetwork_mlps = nn.Module()
        decoder.output_hypernetwork_mlps.layers = nn.ModuleList(
            [nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width // 8)]
        )
        self.face_decoder = decoder

    def forward(self, x: Tensor) -> Tensor:
        scales = []
        swin: Any = self.backbone["0"]
        for i, stage in enumerate(swin):
            x = stage(x)
            if i % 2:  # even ones embed patches or merge them
                scales.append(x)
        size = scales[0].shape[1:3]
        projected = [
            F.interpolate(mlp["proj"](scale).permute(0, 3, 1, 2), size, mode="bilinear", align_corners=False)  # type: ignore[index]
            for scale, mlp in zip(scales, self.linear_c, strict=True)
        ]
        fused = self.linear_fuse(torch.cat(projected[::-1], 1))
        decoder: Any = self.face_decoder
        start = torch.cat([getattr(decoder, f"{name}_token").weight for name in TASK_TOKENS])
        start = torch.cat([start, decoder.mask_tokens.weight]).expand(len(x), -1, -1)
        tokens, pixels = decoder.transformer(fused.flatten(2).transpose(1, 2), self._place(size), start)
        fine = decoder.output_upscaling(pixels.transpose(1, 2).unflatten(2, size))
        first, second, last = decoder.output_hypernetwork_mlps.layers
        kernels = last(F.relu(second(F.relu(first(tokens[:, len(TASK_TOKENS) :])))))
        return torch.einsum("nkc,nchw->nkhw", kernels, fine)

    def _place(self, size: torch.Size) -> Tensor:
        """Where each cell is, as random Fourier features [1, h * w, c]."""
        matrix: Tensor = self.pe_layer.positional_encoding_gaussian_matrix  # type: ignore[assignment]
        y, x = torch.meshgrid(
            *((torch.arange(n, device=matrix.device) + 0.5) / n * 2 - 1 for n in size), indexing="ij"
        )
        angle = 2 * math.pi * (torch.stack([x, y], -1).reshape(1, -1, 2) @ matrix)
        return torch.cat([angle.sin(), angle.cos()], -1)


class Teacher:
    """A FaceXFormer that says what is where in portraits nobody drew a mask for, always in `eval()`."""

    def __init__(self, network: FaceXFormerParser, device: torch.device, digest: str) -> None:
        self.network = network.to(device).eval()
        self.device = device
        self.digest = digest  # of the manifest, or SHA-256 of the checkpoint

    @classmethod
    def load(cls, where: str, device: str = "auto") -> Teacher:
        """Load a converted teacher, a checkpoint file, or one from a hub.

        Args:
            where: folder that `convert` wrote, path of a `.pt`, `.pth` or `.safetensors` file, or
                `hub:OWNER/REPO/PATH`.
            device: `auto`, `cpu` or `cuda`.

        Raises:
            ArtifactError: there is none, it cannot be fetched, or it is not laid out like FaceXFormer.
        """
        from ohlora.labeling.parser import pick_device

        path = _from_hub(where) if where.startswith(HUB) else Path(where)
        if path.is_dir():
            digest = verify(path, KIND).digest
            weights = load_file(path / WEIGHTS)
        else:
            weights = read_checkpoint(path)
            digest = sha256_file(path)
        return cls(build(weights, str(where)), pick_device(device), digest)

    @torch.inference_mode()
    def opinions(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Probabilities of the first 11 classes in 255ths for portraits uint8 [n, h, w, 3].

        Returns:
            uint8 [n, 11, 112, 112], summing to about 255 over the classes.
        """
        parts = [np.empty((0, CLASSES, OPINION_RESOLUTION, OPINION_RESOLUTION), np.uint8)]
        mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
        for start in range(0, len(images), BATCH):
            some = torch.from_numpy(np.ascontiguousarray(images[start : start + BATCH]))
            pixels = some.permute(0, 3, 1, 2).float() / 255
            size = (RESOLUTION, RESOLUTION)
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
            shares = self.network(((pixels - mean) / std).to(self.device)).softmax(1)
            coarse = F.adaptive_avg_pool2d(shares, OPINION_RESOLUTION)
            parts.append((coarse * 255).round().to(torch.uint8).cpu().numpy())
        return np.concatenate(parts)


def distillation_loss(logits: Tensor, opinions: Tensor) -> Tensor:
    """Cross entropy of the parser's classes, merged to the teacher's, against its opinions.

    Args:
        logits: float32 [n, 14, h, w] of `FaceClass`.
        opinions: float32 [n, 11, t, t] in 0..1.
    """
    log_shares = logits.log_softmax(1)
    rest = torch.logsumexp(log_shares[:, [FaceClass.BACKGROUND, *UNSEEN]], 1, keepdim=True)
    merged = torch.cat([rest, log_shares[:, 1:CLASSES]], 1)
    targets = F.interpolate(opinions, merged.shape[2:], mode="bilinear", align_corners=False)
    return -(targets * merged).sum(1).mean()


def convert(checkpoint: Path, folder: Path) -> str:
    """Write the parsing path of a checkpoint as a model folder of kind `teacher`; returns its digest.

    Raises:
        ArtifactError: the file is no checkpoint laid out like FaceXFormer, or holds more than weights.
    """
    weights = read_checkpoint(checkpoint)
    network = build(weights, str(checkpoint))
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: w.contiguous() for name, w in network.state_dict().items()}, folder / WEIGHTS)
    provenance = {"checkpoint": sha256_file(checkpoint), "architecture": "FaceXFormer, parsing path"}
    return write_manifest(folder, KIND, files=[WEIGHTS], provenance=provenance).digest


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.pt`, `.pth` or `.safetensors` file by name; nothing in it is executed.

    Raises:
        ArtifactError: there is no such file, it is damaged, or it holds more than weights.
    """
    if not path.is_file():
        raise ArtifactError(f"there is no FaceXFormer checkpoint {path}; see labeling.teacher in params.yaml")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        body: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the restricted unpickler fails in many ways, all of which mean the same
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(f"{path} does not load as plain weights: {reason}") from error
    state = body.get(STATE_KEY, body) if isinstance(body, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ArtifactError(f"{path} holds no weights by name")
    return {name.removeprefix("module."): value for name, value in state.items()}


def build(weights: dict[str, Tensor], where: str) -> FaceXFormerParser:
    """The network that fits weights, with them in it; weights of other tasks are left out.

    Raises:
        ArtifactError: they are not laid out like FaceXFormer.
    """
    try:
        stages = range(len([n for n in weights if re.fullmatch(r"linear_c\.\d+\.proj\.weight", n)]))
        tables = [weights[f"backbone.0.{2 * i + 1}.0.attn.relative_position_bias_table"] for i in stages]
        network = FaceXFormerParser(
            embed=weights["backbone.0.0.0.weight"].shape[0],
            depths=[_count(weights, rf"backbone\.0\.{2 * i + 1}\.(\d+)\.") for i in stages],
            heads=[table.shape[1] for table in tables],
            window=(math.isqrt(tables[0].shape[0]) + 1) // 2,
            width=weights["face_decoder.mask_tokens.weight"].shape[1],
            hidden=weights["face_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0],
            decoder_depth=_count(weights, r"face_decoder\.transformer\.layers\.(\d+)\."),
        )
        network.load_state_dict({name: weights[name].float() for name in network.state_dict()})
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise ArtifactError(f"{where} is not laid out like FaceXFormer: {error}") from error
    return network


def _count(weights: dict[str, Tensor], pattern: str) -> int:
    return len({m.group(1) for m in (re.match(pattern, name) for name in weights) if m})


def _from_hub(where: str) -> Path:
    owner, repo, *rest = [*where.removeprefix(HUB).split("/"), "", ""]
    file = "/".join(part for part in rest if part)
    if not (owner and repo and file):
        raise ArtifactError(f"labeling.teacher {where!r} is not of the form {HUB}OWNER/REPO/PATH")
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(f"{owner}/{repo}", file))
    except Exception as error:  # offline, unknown, forbidden: one message, whatever the hub's client raises
        raise ArtifactError(
            f"the teacher {where} cannot be fetched ({type(error).__name__}); put the file here and set "
            'labeling.teacher to its path, or set it to "" to train without one'
        ) from error
