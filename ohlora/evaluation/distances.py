"""How far generated pictures are from portraits, by kernel and Fréchet distance of features.

- Kernel distance: the unbiased squared maximum mean discrepancy under the kernel (x·y/d + 1)^3 over random
  subsets (KID; Binkowski et al. 2018, arXiv:1801.01401). Zero on average for equal distributions, at any
  number of pictures.
- Fréchet distance of two Gaussians (FID; Heusel et al. 2017, arXiv:1706.08500). Biased upwards with few
  pictures: compare it only with one of equally many renders.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]


def standardised(features: Features, reference: Features) -> NDArray[np.float64]:
    """Features in standard deviations of reference features, around their mean; [n, d].

    So that distances of judges with other weights are of one size. A feature that never varies is left out
    of account.
    """
    mean, std = reference.mean(0), reference.std(0)
    scale = np.divide(1, std, out=np.zeros(len(std)), where=std > 1e-6)
    return np.asarray((features.astype(np.float64) - mean) * scale)


def squared_mmd(x: Features, y: Features) -> float:
    """Unbiased squared maximum mean discrepancy of samples [n, d] and [m, d] under the cubic kernel.

    Raises:
        ValueError: fewer than two samples on a side.
    """
    n, m, d = len(x), len(y), x.shape[1]
    if min(n, m) < 2:
        raise ValueError(f"an unbiased estimate needs two samples on each side, got {n} and {m}")
    within_x, within_y = (x @ x.T / d + 1) ** 3, (y @ y.T / d + 1) ** 3
    across = (x @ y.T / d + 1) ** 3
    return float(
        (within_x.sum() - np.trace(within_x)) / (n * (n - 1))
        + (within_y.sum() - np.trace(within_y)) / (m * (m - 1))
        - 2 * across.mean()
    )


def kernel_distance(
    x: Features, y: Features, subsets: int = 50, size: int = 100, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation of `squared_mmd` over random subsets.

    Args:
        x: features [n, d].
        y: features [m, d].
        subsets: how many.
        size: samples of each side in a subset; at most half of the smaller side, so that subsets differ.
        seed: of the draw.

    Raises:
        ValueError: fewer than four samples on a side.
    """
    size = min(size, len(x) // 2, len(y) // 2)
    rng = np.random.default_rng(seed)
    values = [
        squared_mmd(x[rng.choice(len(x), size, False)], y[rng.choice(len(y), size, False)])
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def frechet_distance(x: Features, y: Features) -> float:
    """Squared Fréchet distance of the Gaussians that fit samples [n, d] and [m, d].

    Raises:
        ValueError: fewer than two samples on a side.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(f"a covariance needs two samples, got {len(x)} and {len(y)}")
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    a, b = np.atleast_2d(a), np.atleast_2d(b)
    values, vectors = np.linalg.eigh(a)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    # eigenvalues of a b are those of the symmetric root(a) b root(a)
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b @ root), 0)).sum()
    offset = x.mean(0) - y.mean(0)
    return float(max(offset @ offset + np.trace(a) + np.trace(b) - 2 * cross, 0.0))
