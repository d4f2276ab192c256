"""Losses on sampled people, the identity network and the discriminator: on toys whose answers are known."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ohlora.attributes import CONDITION_NAMES
from ohlora.config import Config
from ohlora.corpus import Portraits
from ohlora.gan.data import TrainingSet, conditions_of
from ohlora.gan.discriminator import Discriminator, discriminator_loss, generator_loss, r1_penalty
from ohlora.gan.face import Face, load_identity, save_face
from ohlora.gan.guidance import COLOURS, INNER, Guide, draw_pairs, outside_change
from ohlora.gan.identity import IdentityNetwork, IdentityTraining, view
from ohlora.gan.training import Device, Distillation
from ohlora.labeling.property_data import DEFAULT_BOXES
from ohlora.labeling.property_network import PropertyNetwork, compute

CPU = Device("cpu", torch.float32)


def guide(seed: int = 0) -> Guide:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scales = dict.fromkeys(CONDITION_NAMES, (0.5, 0.25))
        return Guide(PropertyNetwork(32, DEFAULT_BOXES, scales), IdentityNetwork())


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_pairs_share_the_person_and_half_of_them_the_pose() -> None:
    low, high = np.array([10.0, 0.2, 20.0, 3.0]), np.array([200.0, 0.9, 220.0, 40.0])
    pairs = draw_pairs(200, low, high, np.random.default_rng(0))
    assert torch.equal(pairs.first[:, 3:], pairs.second[:, 3:])
    assert ((pairs.first[:, 3:] >= torch.tensor(low)) & (pairs.first[:, 3:] <= torch.tensor(high))).all()
    assert torch.equal(pairs.first[:, 2] == pairs.second[:, 2], pairs.still)
    assert 60 < int(pairs.still.sum()) < 140
    assert (pairs.first[:, :2] != pairs.second[:, :2]).all()


def test_obedience_is_zero_for_what_the_network_reads_and_grows_with_the_distance() -> None:
    one, images = guide(), noise(3, 3, 64, 64)
    with torch.no_grad():
        read = one.properties(images).values * one.deviation + one.mean
    assert one.obedience(images, read) == pytest.approx(0, abs=1e-6)
    near, far = one.obedience(images, read + 0.1), one.obedience(images, read + 1)
    assert 0 < near < far
    assert far == pytest.approx(1 / 0.25 - 0.15)  # smooth L1 beyond beta .3, in deviations of .25


def test_colours_are_measured_and_pull_the_picture_not_the_mask() -> None:
    one, images = guide(), noise(3, 3, 64, 64).requires_grad_(True)
    with torch.no_grad():
        answer = one.properties(images)
    computed = compute(images.detach(), answer.logits.softmax(1), answer.behind.sigmoid())[0]
    wanted = torch.zeros(3, len(CONDITION_NAMES))
    for name in COLOURS:
        wanted[:, CONDITION_NAMES.index(name)] = computed[name]
    assert one.colours(images, wanted).item() == pytest.approx(0, abs=1e-6)
    column = CONDITION_NAMES.index("background_mean")
    wanted[:, column] += 60
    loss = one.colours(images, wanted)
    loss.backward()
    assert images.grad is not None
    with torch.no_grad():  # a step down the gradient makes the background brighter, as was asked
        brighter = compute(images - images.grad, answer.logits.softmax(1), answer.behind.sigmoid())[0][
            "background_mean"
        ]
    assert (brighter > computed["background_mean"]).all()


def test_gradients_reach_the_picture_and_never_the_networks() -> None:
    one, images = guide(), noise(2, 3, 64, 64).requires_grad_(True)
    loss = one.obedience(images, torch.zeros(2, 7)) + one.strangeness(images, noise(2, 3, 64, 64, seed=1))
    before = {k: v.clone() for k, v in one.properties.state_dict().items()}
    loss.backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert all(p.grad is None for p in (*one.properties.parameters(), *one.identity.parameters()))
    assert all(
        torch.equal(v, before[k]) for k, v in one.properties.state_dict().items()
    )  # eval(): no statistics
    assert not one.properties.training


def test_the_same_picture_is_the_same_person_with_the_same_features() -> None:
    one, images, others = guide(), noise(2, 3, 64, 64), noise(2, 3, 64, 64, seed=1)
    assert one.strangeness(images, images) == pytest.approx(0, abs=1e-6)
    assert one.strangeness(images, others) > 0
    assert one.feature_difference(images, images) == 0
    assert one.feature_difference(images, others) > 0


def test_what_moves_inside_the_face_is_no_change_outside() -> None:
    images = noise(1, 3, 100, 100)
    moved = images.clone()
    left, top, right, bottom = (round(edge * 100) for edge in INNER)
    moved[:, :, top:bottom, left:right] = 0
    assert outside_change(images, moved) == 0
    moved[:, :, 0, 0] += 1
    area = 100 * 100 - (bottom - top) * (right - left)
    assert outside_change(images, moved) == pytest.approx(1 / area)


def test_identity_training_tells_people_apart() -> None:
    training = IdentityTraining(people=4, seed=0)
    prototypes = noise(4, 3, 16, 16)
    rng = np.random.default_rng(0)
    for _ in range(30):
        people = torch.from_numpy(rng.integers(4, size=16))
        images = torch.nn.functional.interpolate(prototypes[people], (64, 64), mode="bilinear")
        training.step(images, people)
    images = torch.nn.functional.interpolate(prototypes, (64, 64), mode="bilinear")
    with torch.no_grad():
        first, second = (training.network.eval()(images + 0.1 * noise(4, 3, 64, 64, seed=s)) for s in (1, 2))
    assert ((first @ second.t()).argmax(1) == torch.arange(4)).all()


@pytest.mark.parametrize("size", [64, 128, 256])
def test_the_view_shows_the_same_at_every_size(size: int) -> None:
    ramp = torch.linspace(-1, 1, size)[None, None, :, None].expand(1, 3, size, size)
    seen = view(ramp)
    assert seen.shape[2:] == (80, 80)
    assert seen[0, 0, 0, 0] == pytest.approx(2 * 0.24 - 1, abs=0.03)
    assert seen[0, 0, -1, 0] == pytest.approx(2 * 0.96 - 1, abs=0.03)


def test_losses_of_the_discriminator_by_hand() -> None:
    real, fake = torch.tensor([2.0]), torch.tensor([-1.0])
    assert discriminator_loss(real, fake) == pytest.approx(
        math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))
    )
    assert generator_loss(fake) == pytest.approx(math.log1p(math.exp(1)))
    linear = torch.nn.Conv2d(3, 1, 2, bias=False)
    images = noise(2, 3, 2, 2)
    assert r1_penalty(linear, images).item() == pytest.approx(linear.weight.square().sum().item(), rel=1e-5)


def test_the_discriminator_sees_patches() -> None:
    network, images = Discriminator(8), noise(1, 3, 128, 128)
    logits = network(images)
    assert logits.shape == (1, 1, 8, 8)
    images[..., :32, :32] += 0.5
    changed = (network(images) - logits).abs()[0, 0] > 1e-6
    assert changed[0, 0]
    assert not changed[-1, -1]


@pytest.fixture
def data(portraits: Portraits) -> TrainingSet:
    return TrainingSet(portraits, conditions_of(portraits, None, "truth"), 0.5, repainted=0.5)


def test_a_guided_and_sharpened_training_resumes_exactly(
    data: TrainingSet, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    config = tiny(
        steps=4, batch_size=2, adversarial=0.1, adversarial_from=0.0, pairs=2, obedience=0.1, same_person=0.1
    ).face
    straight, killed, resumed = (Distillation(config, data, CPU, guide()) for _ in range(3))
    curves = [straight.step() for _ in range(4)][-1]
    assert {"loss", "features", "obedience", "same_person", "adversarial", "discriminator"} <= set(curves)
    assert all(math.isfinite(value) for value in curves.values())
    for _ in range(2):
        killed.step()
    killed.save(tmp_path / "state.safetensors")
    assert resumed.resume(tmp_path / "state.safetensors")
    for _ in range(2):
        resumed.step()
    assert straight.discriminator is not None
    assert resumed.discriminator is not None
    for one, other in (
        (straight.generator, resumed.generator),
        (straight.discriminator, resumed.discriminator),
    ):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)  # Adam blows rounding up


def test_the_identity_network_travels_with_the_face(
    data: TrainingSet, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    distillation = Distillation(tiny().face, data, CPU, guide())
    identity = IdentityNetwork().eval()
    people = distillation.people()
    save_face(tmp_path / "with", distillation.generator, people, 0.8, {}, identity)
    save_face(tmp_path / "without", distillation.generator, people, 0.8, {})
    images = noise(2, 3, 64, 64)
    loaded = load_identity(tmp_path / "with")
    assert loaded is not None
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), identity(images), rtol=0.02, atol=0.02)
    assert load_identity(tmp_path / "without") is None
    Face.load(tmp_path / "with")
