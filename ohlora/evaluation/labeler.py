"""Scores of a labeler on portraits of held-out identities: outlines, and the attributes read off them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ohlora.config import Config
from ohlora.corpus.portraits import Portraits
from ohlora.labeling.formulas import measure
from ohlora.labeling.parser import Parser
from ohlora.labeling.segmentation import iou_metrics
from ohlora.labeling.stage import correlation

READ_OFF = ("eyes", "mouth", "pose")


def score(model_folder: Path, inputs: dict[str, Path], config: Config) -> dict[str, float]:
    """Judge a labeler on the test split of `inputs["corpus"]`.

    Returns:
        `mean_iou`, `iou_<class>`, and `<attribute>_correlation` of what the formulas read off its masks with
        the truth; a correlation that is not defined (nothing varies, nothing is seen) is 0, the worst a
        labeler can do that is not inverted.

    Raises:
        ArtifactError: the model folder is missing or corrupt.
        CorpusError: the corpus is corrupt or holds nothing out.
    """
    parser = Parser.load(model_folder, config.runtime.device)
    portraits = Portraits.load(inputs["corpus"])
    test = portraits.select((portraits.split == "test") & portraits.has_mask)
    masks = parser.masks(test.images)
    metrics = iou_metrics(test.masks, masks)
    measured = measure(masks, test.images)
    for name in READ_OFF:
        value = correlation(measured[name], test.truth[name])
        metrics[f"{name}_correlation"] = value if np.isfinite(value) else 0.0
    return metrics
