import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ohlora.corpus.portraits import CorpusError, Portraits
from ohlora.labeling.parser_training import SETTLED, Examples, Training, fit, train
from ohlora.stage import Journal
from tests.labeling.tiny_parser import Trained, tiny_config


@pytest.fixture(scope="module")
def examples(corpus: Path) -> Examples:
    return Examples.of(Portraits.load(corpus).select("train"))


def weights(training: Training) -> torch.Tensor:
    return torch.cat([w.flatten().float() for w in training.average.state_dict().values()])


def trained_for(steps: int, examples: Examples, *overrides: str) -> Training:
    config = tiny_config("labeling.steps=6", *overrides)
    training = Training(config.labeling, config.runtime, examples)
    for _ in range(steps):
        training.step()
    return training


def test_the_seed_decides_the_weights(examples: Examples) -> None:
    first, again, other = (trained_for(2, examples, f"labeling.seed={seed}") for seed in (1, 1, 2))
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))


def test_a_killed_training_goes_on_where_it_was(examples: Examples, tmp_path: Path) -> None:
    through = trained_for(4, examples)
    trained_for(2, examples).save(tmp_path / "state.safetensors")
    resumed = trained_for(0, examples)
    assert resumed.resume(tmp_path / "state.safetensors")
    assert resumed.step_number == 2
    resumed.step()
    resumed.step()
    torch.testing.assert_close(weights(resumed), weights(through), rtol=1e-4, atol=1e-5)


def test_a_checkpoint_that_does_not_fit_is_left_alone(examples: Examples, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    training = trained_for(0, examples)
    assert not training.resume(path)
    path.write_bytes(b"half a file")
    assert not training.resume(path)
    trained_for(1, examples, "labeling.decoder_channels=[16, 16]").save(path)
    before = weights(training)
    assert not training.resume(path)
    assert torch.equal(weights(training), before)


def test_a_continued_parser_starts_where_the_other_ended(
    trained: Trained, corpus: Path, examples: Examples, tmp_path: Path
) -> None:
    config = tiny_config(
        f"labeling.start={trained.folder}", "labeling.steps=2", "labeling.continued_speed=0.01"
    )
    report = train(config, {"corpus": corpus}, {"output": tmp_path}, Journal(tmp_path))
    assert any("Continued from" in note for note in report.notes)
    assert report.metrics["mean_iou"] > trained.report.metrics["mean_iou"] - 0.05
    other = trained_for(0, examples, "labeling.decoder_channels=[16, 16]")
    before = weights(other)
    assert not other.start_from(trained.folder)
    assert torch.equal(weights(other), before)


def test_the_learning_rate_warms_up_and_falls(examples: Examples) -> None:
    training = trained_for(0, examples, "labeling.steps=100", "labeling.learning_rate=0.01")
    rates = [training.learning_rate(step) for step in range(100)]
    peak = int(np.argmax(rates))
    assert rates[peak] == pytest.approx(0.01)
    assert 0 < peak < 10
    assert (np.diff(rates[peak:]) <= 1e-9).all()
    assert rates[-1] < 0.001
    training.continued = True
    assert training.learning_rate(peak) == pytest.approx(0.01 * training.config.continued_speed)


def test_people_with_many_portraits_are_drawn_less_often_than_their_share(examples: Examples) -> None:
    crowd = Examples(
        examples.images,
        examples.masks,
        np.array([0] * 9 + list(range(1, 8))),
        examples.unlabeled,
        examples.opinions,
    )
    share = trained_for(0, crowd).share
    assert share.sum() == pytest.approx(1)
    assert share[:9].sum() == pytest.approx(3 / 10)
    assert share[9] == pytest.approx(1 / 10)


class Opinionated:
    """Says skin everywhere."""

    def opinions(self, images: np.ndarray) -> np.ndarray:
        found = np.zeros((len(images), 11, 16, 16), np.uint8)
        found[:, 1] = 255
        return found


def test_portraits_without_masks_are_learned_from_the_teacher(corpus: Path, tmp_path: Path) -> None:
    portraits = Portraits.load(corpus).select("train")
    portraits.variant[:] = np.where(np.arange(len(portraits)) < 8, "photo", "sample")
    without = Examples.of(portraits)
    assert (len(without.images), len(without.unlabeled)) == (8, 0)
    taught = Examples.of(portraits, Opinionated())  # type: ignore[arg-type]
    assert (len(taught.images), len(taught.unlabeled), taught.opinions.shape[1]) == (8, 8, 11)
    config = tiny_config("labeling.teacher_share=0.5", "labeling.steps=12")
    training = Training(config.labeling, config.runtime, taught)
    losses = [training.step()["distillation"] for _ in range(12)]
    assert losses[-1] < losses[0]
    assert "distillation" not in trained_for(0, without).step()


def test_a_corpus_without_masks_is_refused(corpus: Path) -> None:
    portraits = Portraits.load(corpus)
    portraits.variant[:] = "photo"
    with pytest.raises(CorpusError, match="no portrait has a mask"):
        Examples.of(portraits)


def test_training_writes_its_state_on_the_way(
    examples: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ohlora.labeling.parser_training.SAVE_EVERY_S", -1.0)
    training = trained_for(0, examples, "labeling.steps=2")
    path = tmp_path / "deep" / "state.safetensors"
    fit(training, Journal(tmp_path), None, path)
    assert trained_for(0, examples).resume(path)
    shutil.rmtree(tmp_path / "deep")


def test_most_portraits_are_left_as_they_are_in_the_last_part(examples: Examples) -> None:
    config = tiny_config("labeling.steps=10", "labeling.settle_from=0.4")
    training = Training(config.labeling, config.runtime, examples)
    assert [training.plain(step) for step in range(10)] == [0.0] * 4 + [SETTLED] * 6
