"""The command line explains itself."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ohlora.cli import app

ROOT = Path(__file__).parents[1]
runner = CliRunner()
COMMANDS = [
    ["stage"],
    ["run"],
    ["config"],
    ["chat"],
    ["render"],
    ["label"],
    ["import-teacher"],
    ["up"],
    ["down"],
    ["status"],
    ["doctor"],
    ["registry", "list"],
    ["registry", "show"],
    ["registry", "promote"],
    ["registry", "rollback"],
    ["bento", "build"],
    ["bento", "serve"],
]


@pytest.fixture(autouse=True)
def in_the_repo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_an_example(command: list[str]) -> None:
    result = runner.invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert f"Example: ohlora {' '.join(command)}" in re.sub(r"\s+", " ", result.output)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["stage", "nope"], ["unknown stage 'nope'", "corpus", "package"]),
        (["run", "--profile", "nope"], ["unknown profile 'nope'", "smoke"]),
        (["run", "--force", "nope"], ["unknown stage 'nope'"]),
        (["config", "--set", "voice.lr=1"], ["unknown key 'voice.lr'", "learning_rate"]),
        (["registry", "show", "nope"], ["unknown model 'nope'", "voice"]),
        (["render", "--out", "face.xyz"], ["face.xyz", ".png"]),
        (["label", "x.png", "--crop", "maybe"], ["--crop 'maybe'", "auto, never"]),
        (["label", "x.png", "--out", "docs"], ["--out docs is a folder"]),
        (["up", "--set", "serving.host=0.0.0.0"], ["serving.host", "serving.token"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_clear_error(arguments: list[str], fragments: list[str]) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 1
    text = re.sub(r"\s+", " ", result.output)
    assert "Traceback" not in text
    for fragment in fragments:
        assert fragment in text


def test_out_of_range_attribute_is_refused() -> None:
    result = runner.invoke(app, ["render", "--eyes", "2"])
    assert result.exit_code == 2
    assert "less than or equal to 1" in re.sub(r"\s+", " ", result.output)


def test_config_prints_the_overlay() -> None:
    result = runner.invoke(app, ["config", "--profile", "smoke"])
    assert result.exit_code == 0
    assert "profile: smoke" in result.output


def test_render_draws_with_a_real_model(tmp_path: Path) -> None:
    starter = Path(__file__).parents[1] / "data" / "starters" / "face"
    pictures = []
    for name, extra in (("shut", ["--eyes", "0"]), ("wide", ["--eyes", "1"]), ("other", ["--seed", "3"])):
        out = tmp_path / f"{name}.png"
        result = runner.invoke(app, ["render", "--out", str(out), "--model", str(starter), *extra])
        assert result.exit_code == 0, result.output
        pictures.append(np.asarray(Image.open(out)).astype(int))
        assert pictures[-1].shape == (256, 256, 3)
    assert np.abs(pictures[0] - pictures[1]).max() > 40
    assert np.abs(pictures[0] - pictures[2]).mean() > 10
