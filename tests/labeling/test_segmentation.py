import doctest

import numpy as np
import pytest
import torch

from ohlora.attributes import FaceClass
from ohlora.labeling import segmentation
from ohlora.labeling.segmentation import (
    CLASSES,
    class_shares,
    class_weights,
    iou_metrics,
    soft_cross_entropy,
    soft_dice_loss,
)


def test_the_example_holds() -> None:
    assert doctest.testmod(segmentation, extraglobs={"np": np}).failed == 0


def test_a_perfect_prediction_scores_one_on_the_classes_there() -> None:
    masks = np.array([[[0, 1], [10, 10]]], dtype=np.uint8)
    metrics = iou_metrics(masks, masks)
    assert metrics == {"mean_iou": 1.0, "iou_background": 1.0, "iou_skin": 1.0, "iou_hair": 1.0}


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    truth = np.zeros((1, 2, 2), dtype=np.uint8)
    predicted = truth.copy()
    predicted[0, 0, 0] = FaceClass.NOSE
    assert iou_metrics(truth, predicted) == {"mean_iou": 0.375, "iou_background": 0.75, "iou_nose": 0.0}


def test_masks_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="different shapes"):
        iou_metrics(np.zeros((1, 2, 2), np.uint8), np.zeros((1, 2, 3), np.uint8))


def test_shares_are_areas() -> None:
    mask = torch.zeros(1, 4, 4, dtype=torch.uint8)
    mask[0, 0, :2] = FaceClass.SKIN
    shares = class_shares(mask, 2)
    assert shares.shape == (1, CLASSES, 2, 2)
    assert shares[0, FaceClass.SKIN, 0, 0] == 0.5
    torch.testing.assert_close(shares.sum(1), torch.ones(1, 2, 2))


def test_losses_are_least_at_the_truth() -> None:
    shares = class_shares(torch.randint(0, CLASSES, (2, 8, 8), dtype=torch.uint8), 8)
    good, bad = 20 * shares, 20 * shares.roll(1, 1)
    weights = torch.ones(CLASSES)
    for right, wrong in (
        (soft_cross_entropy(good, shares, weights), soft_cross_entropy(bad, shares, weights)),
        (soft_dice_loss(good, shares), soft_dice_loss(bad, shares)),
    ):
        assert right < 0.01
        assert wrong > 0.5


def test_rare_classes_weigh_more_and_the_mean_pixel_weighs_one() -> None:
    frequency = torch.tensor([0.96, 0.04, 0.0])
    weights = class_weights(frequency)
    assert weights[1] / weights[0] == pytest.approx(24**0.25, rel=1e-4)
    assert weights[2] == 0
    assert (weights * frequency).sum() == pytest.approx(1)
