from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ohlora.artifacts import ArtifactError, read_manifest
from ohlora.attributes import Expression
from ohlora.config import Config
from ohlora.corpus import Portraits
from ohlora.gan import Face
from ohlora.gan.data import TrainingSet, conditions_of
from ohlora.gan.face import fit_people, new_people, save_face
from ohlora.gan.networks import Generator, Normalisation
from ohlora.gan.pictures import save_sheet, sweeps
from ohlora.gan.training import generator_config


@pytest.fixture(scope="module")
def folder(
    portraits: Portraits, tiny: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("face")
    data = TrainingSet(portraits, conditions_of(portraits, None, "truth"), 0.5)
    torch.manual_seed(0)
    generator = Generator(generator_config(tiny().face))
    codes = torch.randn(data.codes, 8)
    half = len(data.numbers)
    latents, mirrored = codes[:half], codes[half:]
    people = fit_people(data.numbers, latents, mirrored, data.person, data.normalisation, data.persona)
    save_face(folder, generator, people, 0.8, {"licence": "Apache-2.0"})
    return folder


def test_stored_face_draws_what_the_generator_draws(folder: Path) -> None:
    one, two = Face.load(folder), Face.load(folder)
    image = one.render(Expression())
    assert image.shape == (256, 256, 3)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, two.render(Expression()))
    assert image.std() > 1


def test_expression_and_person_change_the_picture(folder: Path) -> None:
    face = Face.load(folder)
    base = face.render(Expression())
    for other in (Expression(eyes=0), Expression(mouth=1), Expression(pose=30)):
        assert (face.render(other) != base).any()
    assert (face.render(Expression(), seed=1) != base).any()
    np.testing.assert_array_equal(
        face.render(Expression(), seed=1), face.render(Expression(), latent=face.sample_latent(1))
    )
    np.testing.assert_array_equal(face.render(Expression(), latent=face.persona_latent), base)


def test_sampled_latents_follow_seed_and_truncation(folder: Path) -> None:
    face = Face.load(folder)
    assert torch.equal(face.sample_latent(5), face.sample_latent(5))
    assert not torch.equal(face.sample_latent(5), face.sample_latent(6))
    assert torch.equal(face.sample_latent(5, truncation=0), face.people.latent_mean)
    spread = [(face.sample_latent(5, t) - face.people.latent_mean).norm() for t in (0.5, 1.0)]
    torch.testing.assert_close(spread[1], 2 * spread[0])


@pytest.mark.parametrize("novelty", [0.0, 0.5, 1.0])
def test_new_people_vary_as_known_ones_do_however_new_they_are(novelty: float) -> None:
    random = torch.Generator().manual_seed(0)
    mean, factor = torch.tensor([1.0, -2.0]), torch.tensor([[2.0, 0.0], [0.6, 0.5]])
    known = mean + torch.randn(3000, 2, generator=random) @ factor.t()
    picked = torch.randint(3000, (40_000,), generator=random)
    new = new_people(mean, factor, known, picked, torch.randn(40_000, 2, generator=random), novelty)
    torch.testing.assert_close(new.mean(0), mean, rtol=0, atol=0.1)
    torch.testing.assert_close(new.t().cov(), factor @ factor.t(), rtol=0.1, atol=0.05)
    distance = (new - known[picked]).norm(dim=1).median()
    if novelty == 0:
        assert distance == 0
    else:
        others = (new - known[torch.randperm(40_000, generator=random) % 3000]).norm(dim=1).median()
        assert (distance < 0.7 * others) == (novelty < 1)


def test_the_novelty_travels_with_the_model_and_she_is_nobodys_start(folder: Path, tmp_path: Path) -> None:
    face = Face.load(folder)
    assert face.novelty == 1.0
    people = face.people
    save_face(tmp_path, face.generator, people, 1.0, {}, novelty=0.0)
    copy = Face.load(tmp_path)
    known = {tuple(z) for z in torch.cat([people.latents, people.mirrored]).tolist()}
    hers = {tuple(table[people.persona].tolist()) for table in (people.latents, people.mirrored)}
    drawn = {tuple(copy.sample_latent(seed).tolist()) for seed in range(60)}
    assert drawn == known - hers


def test_conditions_of_new_people_stay_in_the_range_of_the_corpus(folder: Path) -> None:
    face = Face.load(folder)
    seen = face.people.conditions[:, 3:]
    for seed in range(20):
        drawn = face.conditions(Expression(eyes=0.5, mouth=0.25, pose=10), face.sample_latent(seed, 1.0))
        assert drawn[:3].tolist() == [0.5, 0.25, 10.0]
        assert (drawn[3:] >= seen.amin(0)).all()
        assert (drawn[3:] <= seen.amax(0)).all()


def test_a_latent_and_a_seed_are_one_too_many(folder: Path) -> None:
    face = Face.load(folder)
    with pytest.raises(ValueError, match="not both"):
        face.render(Expression(), latent=face.persona_latent, seed=1)


def test_corrupt_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("generator.safetensors", "people.safetensors", "model.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    Face.load(tmp_path)
    weights = bytearray((tmp_path / "generator.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "generator.safetensors").write_bytes(weights)
    with pytest.raises(ArtifactError, match="corrupt"):
        Face.load(tmp_path)


def test_settings_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("generator.safetensors", "people.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    manifest = (folder / "model.json").read_text().replace('"w_dim": 32', '"w_dim": 16')
    (tmp_path / "model.json").write_text(manifest)
    with pytest.raises(ArtifactError, match="does not fit"):
        Face.load(tmp_path)


def test_manifest_says_what_the_model_is(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest.kind == "face"
    assert manifest.provenance == {"licence": "Apache-2.0"}
    assert set(manifest.files) == {"generator.safetensors", "people.safetensors"}


def test_gaussian_recovers_the_spread_of_many_people() -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(4000, 3, generator=generator) * torch.tensor([1.0, 2.0, 0.5])
    conditions = np.zeros((4000, 7), np.float32)
    conditions[:, 3] = 10 + 5 * latents[:, 1].numpy()
    scales = Normalisation(
        torch.tensor([0, 0, 0, 10.0, 0, 0, 0]),
        torch.tensor([1, 1, 1, 5.0, 1, 1, 1]),
        torch.zeros(3),
        torch.ones(3),
    )
    people = fit_people(np.arange(4000), latents, latents, conditions, scales, 0)
    covariance = people.latent_factor @ people.latent_factor.T
    torch.testing.assert_close(covariance.diagonal(), torch.tensor([1.0, 4.0, 0.25]), rtol=0.1, atol=0.05)
    torch.testing.assert_close(people.regression[1, 0], torch.tensor(1.0), rtol=0.1, atol=0.05)


def test_sheet_has_a_tile_per_expression(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    save_sheet(Face.load(folder), tmp_path / "sheet.png", sampled=1, size=16)
    assert Image.open(tmp_path / "sheet.png").size == (16 * len(sweeps()), 32)
