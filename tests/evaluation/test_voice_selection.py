from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from ohlora.config import ConfigError, load_config
from ohlora.evaluation.voice_selection import PARENT_RUN, Selection, SelectionError
from ohlora.registry import Registry

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A work tree with two tiny candidates."""
    for name in ("ohlora", "data/persona", "data/probes", "data/retriever", "profiles"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "data"))
    values = load_config(ROOT, "smoke").model_dump(mode="json")
    values["persona"]["limit"] = 8
    values["voice"] |= {
        "epochs": 1.0,
        "evaluate_rows": 4,
        "scratch": {"hidden_size": 16, "layers": 1, "heads": 2, "context": 384, "seed": 0},
        "candidates": [
            {"name": "narrow", "overrides": []},
            {"name": "wide", "overrides": ["voice.scratch.hidden_size=32"]},
        ],
    }
    values["generation"]["max_new_tokens"] = 48
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return tmp_path


def change(tree: Path, **candidate: object) -> None:
    values = yaml.safe_load((tree / "params.yaml").read_text(encoding="utf-8"))
    values["voice"]["candidates"][1] |= candidate
    (tree / "params.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")


@pytest.mark.slow
def test_two_candidates_become_one_table_of_nested_runs(tree: Path) -> None:
    selection = Selection(tree)
    with selection.opened():
        for candidate in selection.candidates:
            selection.measure(candidate)
    narrow, wide = selection.rows
    assert (narrow["candidate"], wide["candidate"]) == ("narrow", "wide")
    for row in selection.rows:
        assert row["seconds"] > 0
        assert 100 < row["peak_memory_mb"] < 20_000
        assert row["bits_per_character"] > 0
    assert wide["trained_megabytes"] > narrow["trained_megabytes"]
    best = min(selection.rows, key=lambda row: row[selection.config.gate.voice.primary])
    if not selection.config.gate.voice.higher_is_better:
        assert selection.best() == best["candidate"]

    registry = Registry(selection.config, tree)
    runs = registry.client.search_runs([registry.experiment_id])
    parent = next(run for run in runs if PARENT_RUN not in run.data.tags)
    children = [run for run in runs if run.data.tags.get(PARENT_RUN) == parent.info.run_id]
    assert {run.data.params["candidate"] for run in children} == {"narrow", "wide"}
    assert all("final/peak_memory_mb" in run.data.metrics and "loss" in run.data.metrics for run in children)
    table = json.loads(
        Path(registry.client.download_artifacts(parent.info.run_id, "tables/candidates.json")).read_text()
    )
    assert "candidate" in table["columns"]
    assert len(table["data"]) == 2


def test_a_candidate_that_fails_is_named_with_its_last_words(tree: Path) -> None:
    change(tree, overrides=["persona.card=data/persona/nobody.yaml"])
    selection = Selection(tree, names=["wide"])
    with selection.opened(), pytest.raises(SelectionError, match=r"candidate wide failed.*nobody\.yaml"):
        selection.measure(selection.candidates[0])


def test_settings_of_all_candidates_are_checked_before_one_trains(tree: Path) -> None:
    change(tree, overrides=["voice.rank=3"])
    with pytest.raises(ConfigError, match=r"unknown key 'voice\.rank'"):
        Selection(tree)


@pytest.mark.parametrize(
    ("candidate", "names", "message"),
    [
        ({"name": "narrow"}, [], "comes twice"),
        ({}, ["broad"], "unknown candidate 'broad'; there are: narrow, wide"),
    ],
)
def test_names_must_be_known_and_differ(
    tree: Path, candidate: dict[str, str], names: list[str], message: str
) -> None:
    change(tree, **candidate)
    with pytest.raises(ConfigError, match=message):
        Selection(tree, names=names)


def test_no_candidates_is_an_error_that_says_what_to_do(tree: Path) -> None:
    with pytest.raises(ConfigError, match=r"voice\.candidates is empty"):
        Selection(tree, overrides=["voice.candidates=[]"])
