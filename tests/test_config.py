"""The configuration says what is wrong, where, and what is allowed."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ohlora.config import Config, ConfigError, dump_config, find_root, load_config, profiles

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(
        (ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8"
    )
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "tiny.yaml").write_text("voice: {epochs: 7.5}\n", encoding="utf-8")
    return tmp_path


def test_every_committed_profile_parses() -> None:
    names = profiles(ROOT)
    assert {"default", "smoke", "gpu"} <= set(names)
    for name in names:
        assert load_config(ROOT, name).profile == name


def test_params_yaml_spells_out_every_setting() -> None:
    written = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    full = load_config(ROOT).model_dump(mode="json")

    def keys(values: dict, prefix: str = "") -> set[str]:
        return {
            name
            for key, value in values.items()
            for name in (keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}"})
        }

    assert keys(written) == keys(full)


def test_overlay_then_override_wins(tree: Path) -> None:
    assert load_config(tree).voice.epochs != 7.5
    assert load_config(tree, "tiny").voice.epochs == 7.5
    assert load_config(tree, "tiny", ["voice.epochs=3"]).voice.epochs == 3


@given(rate=st.floats(min_value=1e-9, max_value=1, allow_nan=False))
def test_override_reads_any_notation_of_a_float(rate: float) -> None:
    assert load_config(ROOT, overrides=[f"voice.learning_rate={rate!r}"]).voice.learning_rate == rate


@pytest.mark.parametrize("written", ["", '""'])
def test_override_empties_a_text(written: str) -> None:
    assert load_config(ROOT, overrides=[f"face.start={written}"]).face.start == ""


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("voice.lr=1", ["--set voice.lr=1", "unknown key 'voice.lr'", "learning_rate"]),
        ("voice.epochs=-1", ["voice.epochs", "greater than 0", "-1"]),
        ("voice.base=gpt5", ["voice.base", "'gemma3-270m'", "gpt5"]),
        ("nonsense=1", ["unknown key 'nonsense'", "corpus"]),
        ("voice=3", ["voice"]),
        ("voice.epochs", ["key=value"]),
        ("voice.epochs=[", ["not YAML"]),
    ],
)
def test_bad_override_names_key_source_and_allowed(override: str, fragments: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(ROOT, overrides=[override])
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_typo_in_a_profile_names_its_file(tree: Path) -> None:
    (tree / "profiles" / "typo.yaml").write_text("face: {stepz: 3}\n", encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"profiles/typo.yaml: unknown key 'face.stepz'; allowed here: .*steps"
    ):
        load_config(tree, "typo")


def test_unknown_profile_lists_the_known(tree: Path) -> None:
    with pytest.raises(ConfigError, match="unknown profile 'big'; there are: default, tiny"):
        load_config(tree, "big")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: [", b"- 1\n"])
def test_broken_params_is_a_clear_error(tree: Path, content: bytes) -> None:
    (tree / "params.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"params\.yaml"):
        load_config(tree)


def test_missing_params_says_how_to_restore(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="git checkout"):
        load_config(tmp_path)


def test_dump_round_trips(tree: Path) -> None:
    config = load_config(tree, "tiny")
    (tree / "params.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tree) == config


def test_config_is_frozen() -> None:
    config = load_config(ROOT)
    with pytest.raises(ValueError, match="frozen"):
        config.voice.epochs = 2  # type: ignore[misc]


def test_find_root_walks_up(tree: Path) -> None:
    (tree / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
    deep = tree / "a" / "b"
    deep.mkdir(parents=True)
    assert find_root(deep) == tree.resolve()


def test_find_root_outside_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="work tree"):
        find_root(tmp_path)


def test_every_setting_is_documented() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for section, field in Config.model_fields.items():
        fields = getattr(field.annotation, "model_fields", None)
        for key in fields or {}:
            assert f"`{section}.{key}" in text, "run scripts/write_configuration_docs.py"
