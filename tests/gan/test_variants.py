"""Each variant changes what it must and only that, resumes, saves and draws; the stage makes them all."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from ohlora.artifacts import ArtifactError, read_manifest
from ohlora.attributes import Expression
from ohlora.gan import VariantFace, load_face
from ohlora.gan.importing import StyleGAN
from ohlora.gan.stylegan import StyleGenerator
from ohlora.gan.variant_face import Editor
from ohlora.gan.variants.autoencoder import V3
from ohlora.gan.variants.base import Base
from ohlora.gan.variants.conditional import V1, V4
from ohlora.gan.variants.directions import Directions, regression, svm_normal
from ohlora.gan.variants.guided import V2
from ohlora.gan.variants.losses import critic_loss
from ohlora.gan.variants.method import Method, VariantUnusable, discriminator_with_labels, with_labels
from ohlora.gan.variants.methods import METHODS
from ohlora.gan.variants.persona import Likeness, find_persona, unit
from ohlora.gan.variants.training import Training, run_training
from ohlora.stage import Journal
from tests.gan import variant_parts as parts

TRAINED: list[type[V1] | type[V2] | type[V3] | type[V4]] = [V1, V2, V3, V4]


def changed(before: torch.nn.Module, after: torch.nn.Module) -> set[str]:
    """Names of tensors that differ."""
    own = after.state_dict()
    return {name for name, value in before.state_dict().items() if not torch.equal(value, own[name])}


def make(method: type[Method], *overrides: str, checkpoints: Path | None = None) -> VariantFace:
    data = parts.data()
    folder = Path("unused") if checkpoints is None else checkpoints
    journal = Journal(folder) if checkpoints else QuietJournal()
    return method(parts.bench(data, checkpoints)).train(
        data, parts.base(), parts.settings(*overrides), journal
    )


class QuietJournal(Journal):
    def __init__(self) -> None:
        pass

    def log(self, step: int, **metrics: float) -> None:
        assert metrics


@pytest.mark.parametrize("method", TRAINED)
def test_only_the_mapping_of_the_generator_trains(method: type[V1]) -> None:
    data, base = parts.data(), parts.base()
    original = copy.deepcopy(base)
    training = method(parts.bench(data)).training(data, base, parts.settings())
    before = {name: copy.deepcopy(module) for name, module in training.modules.items()}
    for _ in range(3):
        training.step()
    for name in ("generator", "average"):
        moved = changed(before[name], training.modules[name])
        rest = {key for key in moved if not key.startswith("mapping.")}
        assert rest <= {"truncation.w_avg"}
        parameters = {f"mapping.{key}" for key, _ in before[name].mapping.named_parameters()}
        assert parameters <= moved
        synthesis = training.modules[name].synthesis
        assert base.generator is not None
        assert not changed(base.generator.synthesis, synthesis), "bit-identical to the base"
    if "discriminator" in training.modules:
        moved = changed(before["discriminator"], training.modules["discriminator"])
        assert {key.partition(".")[0] for key in moved} == {"layer6", "layer7", "layer8"}
    if "encoder" in training.modules:
        assert len(changed(before["encoder"], training.modules["encoder"])) == len(
            before["encoder"].state_dict()
        )
    for one, other in zip(
        (original.generator, original.discriminator), (base.generator, base.discriminator), strict=True
    ):
        assert one is not None
        assert other is not None
        assert not changed(one, other), "the base is not changed"


@pytest.mark.parametrize("method", [V2, V3])
def test_readers_are_not_trained(method: type[V2] | type[V3]) -> None:
    data = parts.data()
    bench = parts.bench(data)
    before = copy.deepcopy(bench)
    training = method(bench).training(data, parts.base(), parts.settings())
    for _ in range(2):
        training.step()
    for name in ("properties", "gender"):
        reader = getattr(bench, name)
        assert not changed(getattr(before, name), reader)
        assert not reader.training


@pytest.mark.parametrize("method", TRAINED)
def test_a_resumed_variant_equals_an_uninterrupted_one(method: type[V1], tmp_path: Path) -> None:
    data, path = parts.data(), tmp_path / "state.safetensors"

    def fresh() -> Training:
        return method(parts.bench(data)).training(data, parts.base(), parts.settings())

    straight, killed, resumed = fresh(), fresh(), fresh()
    for _ in range(4):
        straight.step()
    for _ in range(2):
        killed.step()
    killed.save(path)
    run_training(resumed, QuietJournal(), path)
    assert resumed.step_number == straight.step_number == 4
    assert resumed.numbers == straight.numbers
    for name, module in straight.modules.items():
        assert not changed(module, resumed.modules[name])


def test_v1_and_v4_differ_in_labels_and_mixing() -> None:
    data, config = parts.data(), parts.settings()
    one, four = (m(parts.bench(data)).training(data, parts.base(), config) for m in (V1, V4))
    assert one.options.labels == (0, 1, 2, 3, 4, 5, 6)
    assert four.options.labels == (0, 1, 2)
    assert (one.options.mixing, four.options.mixing) == (0.9, 0.0)
    assert one.generator.mapping.get_submodule("dense0").weight.shape[1] == 12 + 16
    assert one.discriminator.get_submodule("layer8").weight.shape == (1 + 7, 8)
    assert four.generator.config.label_dim == 3


def test_the_rate_falls_and_the_generator_repeats_at_most_so_often() -> None:
    data = parts.data()
    training = V1(parts.bench(data)).training(data, parts.base(), parts.settings("conditional.steps=8"))
    curves = [training.step() for _ in range(8)]
    rates = [curve["rate"] for curve in curves]
    assert rates[0] == 1.0
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.1
    assert all(1 <= curve["g_steps"] <= 4 for curve in curves)
    labels, layers = training.optimizers["generator"].param_groups
    assert [p.shape for p in labels["params"]] == [(7, 16)]
    assert len(layers["params"]) == 2 * 3
    assert labels["lr"] == pytest.approx(1e-4 * rates[-1])
    assert layers["lr"] == pytest.approx(1e-2 * rates[-1]), "whose weights count a hundredth"
    # what a step takes from a weight is rate times decay: the same of all
    assert layers["lr"] * layers["weight_decay"] == pytest.approx(labels["lr"] * labels["weight_decay"])


@pytest.mark.parametrize("method", TRAINED)
def test_the_mapping_networks_layers_have_a_rate_of_their_own(method: type[V1]) -> None:
    data = parts.data()
    training = method(parts.bench(data)).training(data, parts.base(), parts.settings("mapping_rate=7"))
    training.step()
    rest, layers = training.optimizers["generator"].param_groups
    assert len(layers["params"]) == 2 * 3
    assert layers["lr"] == pytest.approx(7 * rest["lr"])


def test_labels_are_new_and_all_else_is_the_bases() -> None:
    generator = parts.base().generator
    assert generator is not None
    wide = with_labels(generator, 7, 16, "new", 0)
    own = dict(wide.named_parameters())
    for name, value in generator.named_parameters():
        assert name.startswith("mapping.dense0") or torch.equal(value, own[name]), name
    z = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    kept = with_labels(generator, 7, 16, "kept", 0)
    same = kept.mapping(z, torch.zeros(4, 7))
    torch.testing.assert_close(same, generator.mapping(z), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(kept.mapping(z, torch.ones(4, 7)), same, atol=1e-3)
    before = parts.base().discriminator
    assert before is not None
    for form, shape in (("projection", (8, 8)), ("concatenation", (1, 15))):
        own = dict(discriminator_with_labels(before, generator.config, 7, form, 0).named_parameters())
        for name, value in before.named_parameters():
            assert name.startswith("layer8") or torch.equal(value, own[name]), name
        assert own["layer8.weight"].shape == shape


def test_only_a_projection_tells_whether_a_label_fits() -> None:
    """Grey portraits whose brightness is their label against the same ones with another's label."""
    rng = np.random.default_rng(0)
    grey = torch.from_numpy(rng.uniform(-1, 1, (64, 1, 1, 1)).astype("f4"))
    images, labels = grey.expand(-1, 3, 32, 32), grey.view(-1, 1) / grey.std()
    base = parts.base().discriminator
    assert base is not None
    told = {}
    for form in ("projection", "concatenation"):
        critic = discriminator_with_labels(base, parts.SHAPE, 1, form, 0)
        optimizer = torch.optim.Adam(critic.parameters(), 0.01)
        for _ in range(60):
            fits, fits_not = critic(images, labels), critic(images, labels.roll(7, 0))
            loss = critic_loss(fits, fits_not)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        told[form] = float((critic(images, labels) - critic(images, labels.roll(7, 0))).mean().detach())
    assert told["projection"] > 1
    assert abs(told["concatenation"]) < 1e-4, "a sum of two scores: labels that others have change nothing"


def test_without_a_discriminator_all_of_a_new_one_trains() -> None:
    data = parts.data()
    base = dataclasses.replace(parts.base(), discriminator=None)
    training = V4(parts.bench(data)).training(data, base, parts.settings())
    before = copy.deepcopy(training.discriminator)
    training.step()
    assert len({name.partition(".")[0] for name in changed(before, training.discriminator)}) > 6


def test_v2_goes_from_fixed_to_random_inputs_and_loses_patience() -> None:
    data = parts.data()
    config = parts.settings("guided.steps=100", "guided.group=2", "guided.anneal=0.5", "guided.patience=2")
    training = V2(parts.bench(data)).training(data, parts.base(), config)
    assert training.fixed == 1.0
    z, labels = training.inputs()
    torch.testing.assert_close(z, training.fixed_latents)
    torch.testing.assert_close(labels, training.fixed_labels)
    training.step_number = 4
    assert training.fixed == 0.25
    deviations = []
    for training.step_number in range(4, 204):
        deviations.append(float(training.inputs()[0].std()))
    assert np.mean(deviations) == pytest.approx(1.0, abs=0.1)
    training.step_number = 0
    for loss in (3.0, 3.0, 2.0, 2.0, 2.5, 2.5, 2.1, 2.1):
        training.step_number += 1
        training._count(loss)
    assert training.numbers["best"] == 2.0
    assert training.is_done


def test_v2_learns_what_the_reader_reads() -> None:
    data = parts.data()
    config = parts.settings(
        "guided.steps=60", "guided.learning_rate=0.003", "guided.batch_size=8", "guided.group=1000"
    )
    training = V2(parts.bench(data)).training(data, parts.base(), config)
    errors = [training.step()["attributes"] for _ in range(60)]
    assert np.mean(errors[-5:]) < 0.97 * np.mean(errors[:5])


def test_methods_say_what_they_miss() -> None:
    data, config = parts.data(), parts.settings()
    bare = dataclasses.replace(parts.bench(data), properties=None, gender=None)
    for method in (V2, V3, Directions):
        with pytest.raises(VariantUnusable, match="needs the property network"):
            method(bare).train(data, parts.base(), config, QuietJournal())
    bare = dataclasses.replace(parts.bench(data), gender=None)
    with pytest.raises(VariantUnusable, match="needs the gender classifier"):
        V3(bare).train(data, parts.base(), config, QuietJournal())
    with pytest.raises(VariantUnusable, match="has no generator"):
        Base(bare).train(data, StyleGAN(parts.SHAPE, None, None), config, QuietJournal())
    labelled = dataclasses.replace(parts.SHAPE, label_dim=3)
    with pytest.raises(VariantUnusable, match="takes 3 labels"):
        V1(bare).train(data, StyleGAN(labelled, StyleGenerator(labelled), None), config, QuietJournal())


def test_a_support_vector_normal_finds_a_planted_direction() -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(24)
    truth /= np.linalg.norm(truth)
    styles = rng.standard_normal((1500, 24)) * rng.uniform(0.9, 1.1, 24)
    scores = styles @ truth + 0.2 * rng.standard_normal(1500)
    normal = svm_normal(styles, scores, 0.15, 1.0)
    assert normal.dtype == np.float32
    assert float(np.linalg.norm(normal)) == pytest.approx(1.0, abs=1e-5)
    assert float(normal @ truth) > 0.95
    assert float(svm_normal(styles, -scores, 0.15, 1.0) @ truth) < -0.95
    with pytest.raises(VariantUnusable, match="all pictures of the base score the same"):
        svm_normal(styles, np.ones(1500), 0.15, 1.0)


def test_an_edit_reaches_what_was_asked_although_normals_leak() -> None:
    """Scores are linear in the style, normals are not orthogonal: the response undoes the leak."""
    rng = np.random.default_rng(1)
    truth = torch.from_numpy(rng.standard_normal((10, 3)).astype("f4"))
    styles = torch.from_numpy(rng.standard_normal((500, 10)).astype("f4"))
    normals = torch.nn.functional.normalize((truth @ torch.eye(3) + 0.5).t(), dim=1)
    weights, intercept = regression(styles, styles @ truth + 0.3)
    torch.testing.assert_close(intercept, torch.full((3,), 0.3), atol=0.05, rtol=0)
    editor = Editor(normals, (normals @ truth).t(), weights, intercept, torch.full((3,), 100.0))
    wanted = torch.from_numpy(rng.standard_normal((6, 3)).astype("f4"))
    edited = editor(styles[:6], wanted)
    torch.testing.assert_close(edited @ truth + 0.3, wanted, atol=0.2, rtol=0)
    short = dataclasses.replace(editor, limit=torch.full((3,), 0.1))
    assert float((short(styles[:6], wanted) - styles[:6]).norm(dim=1).max()) <= 0.3 + 1e-5


def test_directions_train_no_network_and_resume_their_scores(tmp_path: Path) -> None:
    face = make(Directions, checkpoints=tmp_path)
    base = parts.base().generator
    assert base is not None
    assert changed(base, face.generator) == {"truncation.w_avg"}
    assert face.controlled == ("eyes", "mouth", "pose")
    assert (tmp_path / "directions.safetensors").is_file()
    again = make(Directions, checkpoints=tmp_path)
    assert face.editor is not None
    assert again.editor is not None
    for name, value in vars(face.editor).items():
        assert torch.equal(value, getattr(again.editor, name)), name


@pytest.fixture(scope="module")
def faces() -> dict[str, VariantFace]:
    return {name: make(method) for name, method in METHODS.items()}


@pytest.mark.parametrize("name", METHODS)
def test_every_variant_has_the_surface_of_a_face(
    faces: dict[str, VariantFace], name: str, tmp_path: Path
) -> None:
    trained = faces[name]
    trained.save(tmp_path, {"profile": "test"})
    face = load_face(tmp_path)
    assert isinstance(face, VariantFace)
    assert read_manifest(tmp_path).kind == "face-variant"
    assert face.manifest.settings["method"] == name
    image = face.render(Expression(eyes=0.9, mouth=0.4, pose=10), seed=3)
    assert image.shape == (256, 256, 3)
    assert image.dtype == np.uint8
    assert np.array_equal(image, face.render(Expression(eyes=0.9, mouth=0.4, pose=10), seed=3))
    assert not np.array_equal(image, face.render(Expression(eyes=0.9, mouth=0.4, pose=10), seed=4))
    close = trained.render(Expression(eyes=0.9, mouth=0.4, pose=10), seed=3).astype(int) - image
    assert np.abs(close).mean() < 2, "float16 on disk changes hardly a grey level"
    z = torch.stack([face.persona_latent, face.sample_latent(1)])
    conditions = torch.stack([face.conditions(Expression()), face.conditions(Expression(), z[1])])
    assert conditions.shape == (2, 7)
    assert torch.equal(face.conditions(Expression()), face.conditions(Expression(), face.persona_latent))
    drawn = face.images(z, conditions, nuisance=torch.zeros(2, 3), batch_size=1)
    assert np.array_equal(drawn[0], face.render(Expression()))
    obeys = not np.array_equal(face.render(Expression(eyes=0.0)), face.render(Expression(eyes=1.0)))
    assert obeys == (name != "base")
    with pytest.raises(ValueError, match="conditions must be"):
        face.images(z, conditions[:, :3])
    with pytest.raises(ValueError, match="not both"):
        face.render(Expression(), latent=z[0], seed=1)


def test_truncation_brings_people_together_and_leaves_attributes(faces: dict[str, VariantFace]) -> None:
    face = faces["v1"]
    scores = torch.zeros(6, 7)
    full = face.styles(torch.stack([face.sample_latent(s, 1.0) for s in range(6)]), scores)
    half = face.styles(torch.stack([face.sample_latent(s, 0.5) for s in range(6)]), scores)
    torch.testing.assert_close(half.std(0), 0.5 * full.std(0), rtol=1e-3, atol=1e-5)
    none = face.styles(torch.zeros(2, 12), torch.tensor([[0.0] * 7, [2.0] + [0.0] * 6]))
    assert not torch.allclose(none[0], none[1]), "the average person still opens her eyes"
    longer = face.styles(3 * face.sample_latent(0, 1.0)[None], scores[:1])
    torch.testing.assert_close(longer, full[:1], rtol=1e-3, atol=1e-4)


def test_the_persona_is_found_among_latents(faces: dict[str, VariantFace]) -> None:
    """Her portraits are drawn by the face itself: the search comes back to the latent they are of."""
    face, data = faces["v4"], parts.data()
    config = parts.settings("persona_candidates=24", "persona_steps=30")
    truth = face.sample_latent(1000, 1.0)
    conditions = torch.from_numpy(data.raw[data.hers])
    with torch.no_grad():
        drawn = face.pixels(truth.expand(len(conditions), -1), conditions).clamp(-1, 1)
    data.images[torch.from_numpy(data.hers)] = ((drawn + 1) * 127.5).round().byte()
    found = find_persona(face, data, None, config, QuietJournal())
    likeness = Likeness.of(data, None)

    def distance(latent: torch.Tensor) -> float:
        with torch.no_grad():
            return float(likeness.distance(face, latent[None], 4))

    others = [distance(face.sample_latent(seed, 1.0)) for seed in range(24)]
    assert distance(found.persona_latent) <= min(others)
    assert found.notes["persona"]["distance"] <= found.notes["persona"]["distance_sampled"]
    suggested = find_persona(face, data, None, config, QuietJournal(), suggested=3 * truth[None])
    assert distance(suggested.persona_latent) < 0.01
    torch.testing.assert_close(unit(3 * truth[None])[0], truth)


def test_a_damaged_folder_is_refused(faces: dict[str, VariantFace], tmp_path: Path) -> None:
    faces["v4"].save(tmp_path, {})
    weights = tmp_path / "generator.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="corrupt"):
        load_face(tmp_path)
    with pytest.raises(ArtifactError, match="is not a model folder"):
        load_face(tmp_path / "nowhere")
