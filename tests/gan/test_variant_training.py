"""Parts that the trainings of variants share: losses, augmentation, schedule, growing, checkpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ohlora.attributes import CONDITION_NAMES
from ohlora.gan.data import CorpusUnusable, held_out
from ohlora.gan.variants import losses
from ohlora.gan.variants.adversarial import AdversarialTraining, at_level
from ohlora.gan.variants.augmentation import MOST, adapted, augment
from ohlora.gan.variants.autoencoder import total
from ohlora.gan.variants.base import adversarial
from ohlora.gan.variants.conditional import V1
from ohlora.gan.variants.data import PortraitSet
from ohlora.gan.variants.readers import resized
from ohlora.gan.variants.training import Training, TrainingDiverged, cosine, run_training
from ohlora.stage import Journal
from tests.gan import variant_parts as parts


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_adversarial_losses_by_hand() -> None:
    real, fake = torch.tensor([[1.0], [-2.0]]), torch.tensor([[0.5], [3.0]])
    expected = (softplus(-1) + softplus(2)) / 2 + (softplus(0.5) + softplus(3)) / 2
    assert float(losses.critic_loss(real, fake)) == pytest.approx(expected, rel=1e-5)
    assert float(losses.generator_loss(fake)) == pytest.approx((softplus(-0.5) + softplus(-3)) / 2, rel=1e-5)


def test_r1_is_the_squared_gradient_of_each_logit() -> None:
    """logit = 3 * sum(x^2): the gradient is 6x."""
    images = torch.arange(2 * 3 * 2 * 2.0).view(2, 3, 2, 2) / 10

    def critic(x: Tensor) -> Tensor:
        return 3 * x.square().sum((1, 2, 3))[:, None]

    expected = float((36 * images.square()).sum((1, 2, 3)).mean())
    assert float(losses.r1_penalty(critic, images).detach()) == pytest.approx(expected, rel=1e-5)


def test_the_autoencoders_loss_by_hand() -> None:
    seen, wanted = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.0, 0.0, -1.0]])
    mean, log_variance = torch.tensor([[1.0, -3.0]]), torch.tensor([[0.5, 0.5]])
    terms = {
        "attributes": losses.attribute_error(seen, wanted),  # (1 + 0 + 9) / 3
        "gender": losses.gender_error(torch.tensor([0.6, 1.0])),  # 0.16 / 2
        "mean": losses.mean_penalty(mean),  # (1 + 9) / 2
        "log_variance": losses.variance_penalty(log_variance),  # 0.25
    }
    config = parts.settings().autoencoder
    assert (config.mean, config.log_variance, config.reconstruction) == (0.2, 0.05, 0.0)
    expected = 10 / 3 + 0.08 + 0.2 * 5 + 0.05 * 0.25
    assert float(total(terms, config)) == pytest.approx(expected, rel=1e-5)
    drawn = torch.zeros(1, 3, 8, 8)
    assert float(losses.redrawing_error(drawn, drawn + 0.5)) == pytest.approx(0.5)
    more = config.model_copy(update={"reconstruction": 2.0})
    terms["reconstruction"] = torch.tensor(0.5)
    assert float(total(terms, more)) == pytest.approx(expected + 1.0, rel=1e-5)


def test_augmentation_follows_its_probability() -> None:
    images = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (64, 3, 16, 16)).astype("f4"))
    assert augment(images, 0.0, np.random.default_rng(0)) is images
    changed = augment(images, 0.3, np.random.default_rng(0))
    touched = (changed - images).abs().amax((1, 2, 3)) > 1e-3
    assert 0.4 < float(touched.float().mean()) < 0.85  # any of a flip in half, a move, a tint
    assert torch.equal(changed, augment(images, 0.3, np.random.default_rng(0)))
    assert torch.isfinite(changed).all()


def test_without_flips_left_stays_left() -> None:
    images = torch.full((200, 3, 32, 32), -1.0)
    images[..., :8] = 1.0
    turned = augment(images, 1.0, np.random.default_rng(0), flips=False).mean(1)
    assert bool((turned[..., :8].mean((1, 2)) > turned[..., -8:].mean((1, 2))).all())
    flipped = augment(images, 1.0, np.random.default_rng(0)).mean(1)
    share = (flipped[..., :8].mean((1, 2)) < flipped[..., -8:].mean((1, 2))).float().mean()
    assert 0.35 < float(share) < 0.65


def test_the_probability_adapts_to_how_sure_the_discriminator_is() -> None:
    assert adapted(0.2, 0.9, 0.6, 8, 80) == pytest.approx(0.3)
    assert adapted(0.2, 0.1, 0.6, 8, 80) == pytest.approx(0.1)
    assert adapted(0.02, 0.1, 0.6, 8, 80) == 0.0
    assert adapted(0.84, 0.9, 0.6, 80, 80) == MOST
    assert adapted(0.5, 0.9, 0.0, 8, 80) == 0.0


def test_real_portraits_lose_the_detail_that_the_generator_has_not() -> None:
    images = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (2, 3, 16, 16)).astype("f4"))
    assert at_level(images, 0.0) is images
    half = at_level(images, 1.0)
    assert torch.equal(half[..., ::2, ::2], half[..., 1::2, 1::2])
    torch.testing.assert_close(at_level(images, 0.5), (images + half) / 2)
    quarter = torch.nn.functional.avg_pool2d(images, 4)
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(at_level(images, 1.5), 4), quarter)


def test_portraits_are_standardised_and_held_out_ones_left_out() -> None:
    found = parts.portraits()
    data = parts.data()
    assert len(data) == len(found) - int(held_out(found).sum())
    scores = data.scores(data.raw)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.mean(0), torch.zeros(7), atol=1e-4, rtol=0)
    torch.testing.assert_close(scores.std(0), torch.ones(7), atol=1e-3, rtol=0)
    batch = data.batch(400, np.random.default_rng(0))
    assert batch.images.dtype == batch.labels.dtype == torch.float32
    assert -1 <= float(batch.images.min()) < float(batch.images.max()) <= 1
    pose = data.normalisation.condition_scale[2] * batch.labels[:, 2] + data.normalisation.condition_mean[2]
    assert bool((pose < 0).any())
    known = {round(abs(float(p)), 2) for p in data.raw[:, 2]}
    assert {round(abs(float(p)), 2) for p in pose} <= known | {round(k + 0.01, 2) for k in known}


def test_a_mirrored_portrait_has_the_opposite_yaw() -> None:
    data = parts.data(people=1, each=2)
    one = PortraitSet.__new__(PortraitSet)
    one.__dict__.update(data.__dict__, images=data.images[:1], raw=data.raw[:1])
    plain, rng = data.pixels(np.array([0]))[0], np.random.default_rng(1)
    for _ in range(8):
        batch = one.batch(1, rng)
        mirrored = torch.equal(batch.images[0], plain.flip(2))
        assert mirrored or torch.equal(batch.images[0], plain)
        wanted = data.raw[:1].copy()
        wanted[:, 2] *= -1 if mirrored else 1
        torch.testing.assert_close(batch.labels, data.scores(wanted))


def test_a_corpus_without_oh_lora_takes_another_person_and_an_empty_one_is_refused() -> None:
    found = parts.portraits()
    nothing = np.full((len(found), 7), np.nan, np.float32)
    with pytest.raises(CorpusUnusable, match="no portrait to train variants on"):
        PortraitSet(found, nothing, np.ones(len(found), bool), 32)


def test_readers_see_clamped_pictures_learn_nothing_and_pass_gradients() -> None:
    data = parts.data()
    properties, gender = parts.readers(data)
    images = (3 * torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))).requires_grad_()
    assert float(resized(images, 64).detach().abs().max()) <= 1
    for reader in (properties, gender):
        assert not reader.training
        assert not any(p.requires_grad for p in reader.parameters())
        assert torch.equal(reader(images), reader(images))  # no dropout
        (gradient,) = torch.autograd.grad(reader(images).sum(), images)
        assert gradient.abs().sum() > 0
    scores = properties(images)
    raw = properties.network(resized(images, 64)).values * 0.25 + 0.5
    torch.testing.assert_close(scores, data.normalisation(raw, None)[0])
    assert bool(((gender(images) > 0) & (gender(images) < 1)).all())


def test_the_schedule_is_stepped() -> None:
    assert cosine(0, 10) == 1.0
    assert cosine(5, 10) == pytest.approx(0.5)
    assert cosine(10, 10) == pytest.approx(0.0)


def small(*overrides: str) -> AdversarialTraining:
    data = parts.data()
    return adversarial(parts.settings(*overrides), parts.base(), data, parts.bench(data))


def test_the_picture_grows_from_eight_pixels() -> None:
    training = small("base.steps=100", "base.growth=0.8")
    levels = []
    for step in (0, 19, 20, 30, 39, 40, 60, 79, 80, 99):
        training.step_number = step
        levels.append(training.lod)
    assert levels[0] == levels[1] == 2.0  # 8 of 32 pixels
    assert levels[4] < levels[3] < 2.0
    assert levels[5] == 1.0
    assert levels[6] == 1.0
    assert 0 < levels[7] < 0.1
    assert levels[8] == levels[9] == 0.0
    training = small("base.growth=0.0")
    assert training.lod == 0.0


def same(one: Training, other: Training) -> bool:
    return all(
        torch.equal(a, b)
        for name in one.modules
        for a, b in zip(
            one.modules[name].state_dict().values(), other.modules[name].state_dict().values(), strict=True
        )
    )


def test_the_base_trains_everything_and_its_average_follows(tmp_path: Path) -> None:
    training, untouched = small("base.steps=3"), small("base.steps=3")
    run_training(training, Journal(tmp_path))
    fresh = dict(untouched.modules["generator"].named_parameters())
    skipped = {"synthesis.output0", "synthesis.output1", "synthesis.output2"}  # only growing reaches them
    for name, value in training.modules["generator"].named_parameters():
        moved = not torch.equal(value, fresh[name])
        assert moved or name.rpartition(".")[0] in skipped or name.endswith("layer0.bias"), name
    average = training.modules["average"].state_dict()
    assert not torch.equal(average["mapping.dense0.weight"], fresh["mapping.dense0.weight"])
    model = training.modules["generator"].state_dict()
    assert not torch.equal(average["mapping.dense0.weight"], model["mapping.dense0.weight"])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"base_d_loss", "base_g_loss", "base_r1", "base_augment"} <= set(rows[-1])


def test_resuming_is_as_if_nothing_had_happened(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    straight, killed, resumed = (small("base.steps=6") for _ in range(3))
    for _ in range(6):
        straight.step()
    for _ in range(3):
        killed.step()
    killed.save(path)
    assert run_training(resumed, Journal(tmp_path), path) >= 0
    assert resumed.step_number == 6
    assert resumed.numbers == straight.numbers
    assert same(straight, resumed)
    again = small("base.steps=6")
    run_training(again, Journal(tmp_path), path)  # it is done: nothing is trained
    assert same(straight, again)


def test_foreign_checkpoints_change_nothing(tmp_path: Path) -> None:
    training, untouched = small(), small()
    path = tmp_path / "state.safetensors"
    assert not training.resume(path)
    path.write_bytes(b"half a file")
    assert not training.resume(path)
    other = parts.bench(parts.data())
    wider = parts.settings("conditional.steps=1")
    V1(other).training(parts.data(), parts.base(), wider).save(path)
    assert not training.resume(path)
    assert same(training, untouched)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    training = small()
    with torch.no_grad():
        training.generator.mapping.get_submodule("dense0").weight.fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match="variant base: not finite at step 1"):
        run_training(training, Journal(tmp_path))


def test_snapshots_are_written(tmp_path: Path) -> None:
    training = small("base.steps=4")
    run_training(training, Journal(tmp_path), pictures=tmp_path / "snapshots", every=2)
    names = sorted(path.name for path in (tmp_path / "snapshots").iterdir())
    assert names == ["base-000002.png", "base-000004.png"]
    assert len(CONDITION_NAMES) == 7


def test_the_drawn_pictures_approach_the_portraits() -> None:
    """Seconds of adversarial training on plain pictures: the mean picture comes closer."""
    data = parts.data()
    color = torch.tensor([60.0, 90.0, 140.0]).view(1, 3, 1, 1)
    shade = torch.from_numpy(np.random.default_rng(0).normal(0, 12, (len(data), 3, 1, 1)))
    data.images = (color + shade).clamp(0, 255).byte().expand(-1, -1, 32, 32).clone()
    overrides = ("base.steps=100", "base.batch_size=8", "base.learning_rate=0.005", "base.growth=0.3")
    training = adversarial(parts.settings(*overrides), parts.base(), data, parts.bench(data))
    wanted = data.images.float().mean(0).permute(1, 2, 0).numpy()
    before = np.abs(training.picture().mean(0) - wanted).mean()
    for _ in range(100):
        training.step()
    assert np.abs(training.picture().mean(0) - wanted).mean() < 0.7 * before
