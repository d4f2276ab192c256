"""Where a face is in a photo, and the photo cut so that the face sits as in our renders.

Detection is MTCNN (Zhang et al., 2016) of facenet-pytorch, whose weights come inside its package; their
SHA-256 are checked before they are read. Cropping is a similarity transform (turn, scale, shift) that brings
both eyes and the mouth as close as it can to where they are in renders.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ohlora.artifacts import ArtifactError, sha256_file

Picture = NDArray[np.uint8]
Points = NDArray[np.float64]

WEIGHTS = {  # of facenet-pytorch 2.5.3
    "pnet.pt": "a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f",
    "rnet.pt": "bbb937de72efc9ef83b186c49f5f558467a1d7e3453a8ece0d71a886633f6a86",
    "onet.pt": "165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d",
}
LEAST_FACE = 24  # pixels of the picture that is searched
SEARCHED_SIDE = 1024  # larger pictures are shrunk for the search
LEAST_PROBABILITY = 0.9
LEAST_FOUND = 3  # faces that a framing is measured on


@dataclass(frozen=True)
class FoundFace:
    """A face in a picture; coordinates in its pixels."""

    box: Points  # [4] left, top, right, bottom
    probability: float
    landmarks: Points  # [3, 2] x and y of the image-left eye, the image-right eye, the middle of the mouth

    @property
    def area(self) -> float:
        left, top, right, bottom = self.box
        return float(max(0.0, right - left) * max(0.0, bottom - top))


class Detector(Protocol):
    """Finds faces."""

    def __call__(self, image: Picture) -> list[FoundFace]:
        """Faces in a picture uint8 [h, w, 3], the largest first; none is an empty list."""
        ...


class MtcnnDetector:
    """MTCNN on the CPU; loading takes a fraction of a second, a picture of 1024 pixels a few tenths."""

    def __init__(self) -> None:
        """
        Raises:
            ArtifactError: the package is missing, or its weights are not those of version 2.5.3.
        """
        _check_weights()
        from facenet_pytorch import MTCNN

        self._network = MTCNN(keep_all=True, min_face_size=LEAST_FACE, select_largest=True).eval()

    def __call__(self, image: Picture) -> list[FoundFace]:
        """Faces in a picture uint8 [h, w, 3] with a probability of at least .9, the largest first."""
        scale = min(1.0, SEARCHED_SIDE / max(image.shape[:2]))
        height, width = (max(1, round(side * scale)) for side in image.shape[:2])
        if min(height, width) < LEAST_FACE:
            return []
        small = image
        if scale < 1:
            small = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))
        try:
            boxes, probabilities, points = self._network.detect(small, landmarks=True)
        except (RuntimeError, IndexError, ValueError):  # it stumbles where all candidates lie outside
            return []
        if boxes is None:
            return []
        faces = []
        for box, probability, five in zip(boxes, probabilities, points, strict=True):
            marks = np.asarray(five, np.float64)
            three = np.stack([marks[0], marks[1], (marks[3] + marks[4]) / 2])
            if float(probability) >= LEAST_PROBABILITY:
                box = np.asarray(box, np.float64)
                faces.append(FoundFace(box / scale, float(probability), three / scale))
        return sorted(faces, key=lambda face: -face.area)


@dataclass(frozen=True)
class Framing:
    """Where the face sits in a square portrait."""

    landmarks: Points  # [3, 2], as in FoundFace, in shares of the side

    @classmethod
    def measure(cls, images: Iterable[Picture], detector: Detector) -> Framing:
        """The mean framing of portraits that look ahead, by the detector that will look at photos.

        The detector's own points are taken rather than the middles of the masks' eyes and mouth, because the
        two differ by 1 to 3 of 256 pixels, and only the former can be found in a photo.

        Raises:
            ValueError: a face is found in fewer than three of them.
        """
        places = []
        for image in images:
            if faces := detector(image):
                places.append(faces[0].landmarks / image.shape[0])
        if len(places) < LEAST_FOUND:
            raise ValueError(f"a face is found in {len(places)} of the portraits that set the framing")
        return cls(np.mean(places, 0))

    def crop(self, image: Picture, face: FoundFace, size: int) -> tuple[Picture, float]:
        """Cut a face out of a picture.

        Args:
            image: uint8 [h, w, 3].
            face: found in it.
            size: pixels per side of the result.

        Returns:
            uint8 [size, size, 3], and the share of it that lies outside of the picture and shows its mirror
            image instead.
        """
        turn, shift = similarity(face.landmarks, self.landmarks * size)
        scale = abs(turn)
        if scale < 1:  # shrink with a proper filter first: the affine transform looks at 4 x 4 pixels only
            height, width = (max(1, round(side * scale)) for side in image.shape[:2])
            image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
            turn /= scale
        back = 1 / turn  # from the portrait into the picture
        corners = np.array([0, size, 1j * size, size + 1j * size])
        inside = (corners - shift) * back
        left, top = int(np.floor(inside.real.min())) - 2, int(np.floor(inside.imag.min())) - 2
        right, bottom = int(np.ceil(inside.real.max())) + 3, int(np.ceil(inside.imag.max())) + 3
        height, width = image.shape[:2]
        rows, columns = np.arange(top, bottom), np.arange(left, right)
        patch = image[_mirrored(rows, height)][:, _mirrored(columns, width)]
        origin = -shift * back - complex(left, top)
        matrix = (back.real, -back.imag, origin.real, back.imag, back.real, origin.imag)
        cut = Image.fromarray(patch).transform(
            (size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
        )
        grid = np.arange(size) + 0.5
        at = (grid[None, :] + 1j * grid[:, None] - shift) * back
        outside = (at.real < 0) | (at.real > width) | (at.imag < 0) | (at.imag > height)
        return np.asarray(cut), float(outside.mean())


def similarity(source: Points, target: Points) -> tuple[complex, complex]:
    """The turn, scale and shift that bring points closest to others in the least squares.

    Args:
        source: [n, 2] x and y.
        target: [n, 2].

    Returns:
        a and b of z -> a z + b, with z = x + iy.

    Raises:
        ValueError: all points of a side coincide.
    """
    z, w = source[:, 0] + 1j * source[:, 1], target[:, 0] + 1j * target[:, 1]
    centred, wanted = z - z.mean(), w - w.mean()
    spread = float((np.abs(centred) ** 2).sum())
    if spread < 1e-9 or float((np.abs(wanted) ** 2).sum()) < 1e-12:
        raise ValueError("the points of a face coincide")
    turn = complex((np.conj(centred) * wanted).sum() / spread)
    if abs(turn) < 1e-9:
        raise ValueError("the points of a face do not resemble a face")
    return turn, complex(w.mean() - turn * z.mean())


def _mirrored(index: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Indices beyond an axis reflected back into it."""
    wrapped = index % (2 * length)
    return np.where(wrapped < length, wrapped, 2 * length - 1 - wrapped)


def _check_weights() -> None:
    spec = find_spec("facenet_pytorch")
    if spec is None or spec.origin is None:
        raise ArtifactError("facenet-pytorch is not installed; run: make setup")
    folder = Path(spec.origin).parent / "data"
    for name, expected in WEIGHTS.items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != expected:
            raise ArtifactError(
                f"{name} of facenet-pytorch is missing or not that of version 2.5.3; run: make setup"
            )
