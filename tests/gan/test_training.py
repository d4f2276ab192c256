from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ohlora.config import Config
from ohlora.corpus import Portraits
from ohlora.gan.data import EYES, POSE, TrainingSet, conditions_of
from ohlora.gan.face import Face, fit_people, save_face
from ohlora.gan.training import Device, Distillation, fingerprint, first_latents, run_distillation
from ohlora.stage import Journal

CPU = Device("cpu", torch.float32)


@pytest.fixture
def data(portraits: Portraits) -> TrainingSet:
    return TrainingSet(portraits, conditions_of(portraits, None, "truth"), 0.5)


def weights(distillation: Distillation) -> list[torch.Tensor]:
    return [p.detach().clone() for p in (*distillation.generator.parameters(), distillation.codes)]


def test_resumed_training_equals_an_uninterrupted_one(
    data: TrainingSet, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    config = tiny(steps=6, batch_size=2).face
    straight, killed, resumed = (Distillation(config, data, CPU) for _ in range(3))
    for _ in range(6):
        straight.step()
    for _ in range(3):
        killed.step()
    killed.save(tmp_path / "state.safetensors")
    assert resumed.resume(tmp_path / "state.safetensors")
    assert resumed.step_number == 3
    run_distillation(resumed, Journal(tmp_path))
    assert resumed.step_number == straight.step_number == 6
    for a, b in zip(weights(straight), weights(resumed), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_broken_or_foreign_checkpoints_are_ignored(
    data: TrainingSet, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    distillation = Distillation(tiny().face, data, CPU)
    before = weights(distillation)
    path = tmp_path / "state.safetensors"
    assert not distillation.resume(path)
    path.write_bytes(b"half a file")
    assert not distillation.resume(path)
    Distillation(tiny(w_dim=16).face, data, CPU).save(path)
    assert not distillation.resume(path)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(distillation), strict=True))


def test_same_seed_same_training(data: TrainingSet, tiny: Callable[..., Config]) -> None:
    runs = [Distillation(tiny(seed=seed, batch_size=2).face, data, CPU) for seed in (1, 1, 2)]
    losses = [[run.step()["loss"] for _ in range(2)] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] != pytest.approx(losses[2], rel=1e-4)


def test_people_who_look_alike_start_as_neighbours() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kinds = 3 * torch.randn(5, 40)
        looks = kinds.repeat_interleave(4, 0) + 0.1 * torch.randn(20, 40)
        latents = first_latents(looks, 16, 0.5)
        assert first_latents(looks[:3], 16, 0.5).shape == (3, 16)  # fewer people than numbers in a latent
    assert latents.shape == (20, 16)
    assert float(latents.square().mean().sqrt()) == pytest.approx(0.5, rel=0.05)
    nearest = torch.cdist(latents, latents).fill_diagonal_(torch.inf).argmin(1)
    assert torch.equal(nearest // 4, torch.arange(20) // 4)


def test_making_a_distillation_leaves_the_global_generator_alone(
    data: TrainingSet, tiny: Callable[..., Config]
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    Distillation(tiny().face, data, CPU)
    assert torch.equal(torch.rand(1), expected)


def test_the_picture_grows_and_the_rate_falls(data: TrainingSet, tiny: Callable[..., Config]) -> None:
    distillation = Distillation(tiny(steps=1000, growth="[0.2,0.6]").face, data, CPU)
    assert [distillation.resolution(s) for s in (0, 199, 200, 599, 600, 999)] == [16, 16, 32, 32, 64, 64]
    rates = [distillation.learning_rate(s) for s in (0, 49, 400, 750, 999)]
    assert rates[0] < rates[1] == rates[2] > rates[3] > rates[4] > 0


def test_fingerprint_follows_settings_and_data(portraits: Portraits, tiny: Callable[..., Config]) -> None:
    conditions = conditions_of(portraits, None, "truth")
    one = fingerprint(tiny().face, portraits, conditions)
    assert one == fingerprint(tiny().face, portraits, conditions.copy())
    assert one != fingerprint(tiny(steps=7).face, portraits, conditions)
    conditions[0, 0] += 0.01
    assert one != fingerprint(tiny().face, portraits, conditions)


def test_a_few_steps_learn_the_persona_and_her_conditions(
    data: TrainingSet, tiny: Callable[..., Config]
) -> None:
    """After seconds on toy faces: the loss falls, yaw moves the face, eyes open."""
    settings = {"growth": "[0.05,0.2]", "ema": 0.95, "persona_share": 1.0, "learning_rate": 0.04}
    config = tiny(steps=200, batch_size=8, **settings).face
    distillation = Distillation(config, data, CPU)
    losses = [distillation.step()["loss"] for _ in range(config.steps)]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    raw = np.tile(data.raw[data.hers[0]], (4, 1))
    raw[:, EYES], raw[:, POSE] = [1, 0, 0.5, 0.5], [0, 0, -25, 25]
    z = distillation.codes[data.persona].detach().expand(4, -1)
    normal, nuisance = data.normalisation(torch.from_numpy(raw), None)
    with torch.no_grad():
        image = distillation.average(z, normal, nuisance=nuisance)
    eyes = image[:, :, 25:29, [*range(20, 26), *range(38, 44)]].mean((1, 2, 3))
    assert eyes[0] > eyes[1] + 0.05
    column = torch.arange(64.0)
    bright = (image.mean(1) + 1).clamp_min(0)[:, 10:56].sum(1) - 15
    centre = (bright.clamp_min(0) * column).sum(1) / bright.clamp_min(0).sum(1)
    assert centre[3] > centre[2] + 4


def test_a_continued_model_keeps_weights_and_known_latents(
    data: TrainingSet, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    first = Distillation(tiny(seed=1).face, data, CPU)
    half = len(data.numbers)
    codes = first.codes.detach()
    people = fit_people(
        data.numbers[:3], codes[:3], codes[half : half + 3], data.person[:3], data.normalisation, data.persona
    )
    save_face(tmp_path, first.generator, people, 0.8, {})
    face = Face.load(tmp_path)
    second = Distillation(tiny(seed=2).face, data, CPU)
    assert second.start_from(face, data.numbers)
    torch.testing.assert_close(second.codes[:3], codes[:3])
    torch.testing.assert_close(second.codes[half : half + 3], codes[half : half + 3])
    torch.testing.assert_close(second.codes[3], people.latent_mean)
    for a, b in zip(second.generator.parameters(), first.generator.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-3)  # stored as float16
    assert second.resolution(0) == 64
    half = Distillation(tiny(continued_growth=0.5, steps=10).face, data, CPU)
    half.start_from(face, data.numbers)
    assert [half.resolution(step) for step in (0, 4, 5)] == [32, 32, 64]
    assert second.learning_rate(100) < first.learning_rate(100)
    other = Distillation(tiny(w_dim=16).face, data, CPU)
    assert not other.start_from(face, data.numbers)
    assert not other.continued
