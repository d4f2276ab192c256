"""The gate: the pure decision, and aliases moving in a real registry with a tiny scorer."""

import math
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.tracking import MlflowClient

from ohlora.artifacts import write_manifest
from ohlora.config import Config, Floor, GateRule, load_config
from ohlora.evaluation.gate import Gate, GateError, decide
from ohlora.registry import Registry

ROOT = Path(__file__).parents[2]
RULE = GateRule(primary="bits", higher_is_better=False, floors=[Floor(metric="bits", at_most=3.0)])
scores = st.floats(0.01, 2.99)


def test_the_first_version_needs_its_floors_too() -> None:
    assert decide({"bits": 2.9}, None, RULE).passed
    verdict = decide({"bits": 3.1}, None, RULE)
    assert not verdict.passed
    assert verdict.reasons == ("bits 3.1 is above its ceiling 3",)


def test_a_champion_below_its_floor_need_not_be_beaten_but_the_floor_holds() -> None:
    assert decide({"bits": 2.9}, {"bits": 3.5}, RULE).passed
    assert not decide({"bits": 3.2}, {"bits": 3.5}, RULE).passed


def test_a_missing_or_undefined_figure_never_passes() -> None:
    assert not decide({}, None, RULE).passed
    assert not decide({"bits": math.nan}, {"bits": 2.0}, RULE).passed
    assert not decide({"other": 1.0}, None, GateRule(primary="bits")).passed


def test_the_least_gain_counts() -> None:
    rule = GateRule(primary="pearson", min_gain=0.1)
    assert decide({"pearson": 0.75}, {"pearson": 0.5}, rule).passed
    verdict = decide({"pearson": 0.55}, {"pearson": 0.5}, rule, "champion v1")
    assert verdict.reasons == ("pearson 0.55 does not beat champion v1 (0.5) by 0.1",)


@given(scores, scores)
def test_of_two_models_at_most_one_beats_the_other(a: float, b: float) -> None:
    forth, back = decide({"bits": a}, {"bits": b}, RULE), decide({"bits": b}, {"bits": a}, RULE)
    assert forth.passed == (a < b)
    assert not (forth.passed and back.passed)


class Bench:
    """A work tree with a gate whose scorer reads the score from the model's weights."""

    def __init__(self, tree: Path, config: Config) -> None:
        self.tree = tree
        self.config = config.model_copy(update={"gate": config.gate.model_copy(update={"voice": RULE})})
        self.registry = Registry(self.config, tree)
        self.scored: list[str] = []
        self.said: list[str] = []
        (tree / "artifacts/dialogues").mkdir(parents=True)
        (tree / "artifacts/dialogues/rows.jsonl").write_text("held out")
        (tree / "artifacts/examples").mkdir()
        (tree / "data/probes").mkdir(parents=True)
        self.base = self.model("artifacts/base_llm", "base", kind="base-llm")

    def model(self, name: str, weights: str, kind: str = "voice") -> Path:
        folder = self.tree / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights.safetensors").write_text(weights)
        base = {"name": "b", "sha256": self.digest} if kind == "voice" else {}
        self.digest = write_manifest(folder, kind, files=["weights.safetensors"], base=base).digest
        if kind == "voice":
            self.digest = base["sha256"]
        return folder

    def score(self, folder: Path, inputs: dict[str, Path], config: Config) -> dict[str, float]:
        assert (inputs["base_llm"] / "weights.safetensors").read_text() == "base"
        text = (folder / "weights.safetensors").read_text()
        self.scored.append(text)
        return {"bits": float(text)}

    def gate(self, promote: bool = True) -> Gate:
        rules = self.config.gate.model_copy(update={"promote": promote})
        config = self.config.model_copy(update={"gate": rules})
        return Gate(
            config, self.tree, registry=self.registry, scorers={"voice": self.score}, say=self.said.append
        )

    def aliases(self) -> dict[str, int]:
        return {alias: v.version for v in self.registry.versions("voice") for alias in v.aliases}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's empty tables, which take seconds to make."""
    path = tmp_path_factory.mktemp("tables") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def bench(tmp_path: Path, tables: Path) -> Bench:
    (tmp_path / ".ohlora").mkdir()
    shutil.copyfile(tables, tmp_path / ".ohlora" / "mlflow.db")
    return Bench(tmp_path, load_config(ROOT))


def test_from_starter_to_a_better_model_and_back(bench: Bench) -> None:
    gate = bench.gate()
    bench.model("data/starters/voice", "2.10")
    # worse than the starter, although better than the floor
    worse = gate.run("voice", bench.model("a", "2.41"))
    assert not worse.passed
    assert str(worse) == (
        "voice v2 rejected: bits 2.41 does not beat champion v1 (2.1); the starting champion keeps serving"
    )
    assert bench.aliases() == {"champion": 1, "challenger": 2}
    rejected = bench.registry.version("voice", "2")
    assert rejected.tags["verdict"] == "rejected"
    assert rejected.tags["verdict_reasons"] == "bits 2.41 does not beat champion v1 (2.1)"

    better = gate.run("voice", bench.model("b", "1.90"))
    assert better.passed
    assert str(better).startswith("voice v3 is the new champion, instead of v1")
    assert bench.aliases() == {"champion": 3, "previous": 1}

    assert gate.rollback("voice") == "voice v1 serves again instead of v3"
    assert bench.aliases() == {"champion": 1, "previous": 3}
    # the pipeline does not put back what a person took down, a person can
    again = gate.run("voice", bench.tree / "b")
    assert not again.passed
    assert "ohlora registry promote voice 3" in str(again)
    assert bench.aliases() == {"champion": 1, "previous": 3}
    assert gate.promote("voice", "3").passed
    assert bench.aliases() == {"champion": 3, "previous": 1}


def test_what_is_unchanged_is_not_scored_twice_and_new_evidence_is(bench: Bench) -> None:
    champion, challenger = bench.model("a", "2.0"), bench.model("b", "2.5")
    bench.gate().run("voice", champion)
    bench.gate().run("voice", challenger)
    assert bench.scored == ["2.0", "2.5"]
    bench.gate().run("voice", challenger)
    assert str(bench.gate().run("voice", champion)) == "voice v1 is the champion already: bits 2"
    assert bench.scored == ["2.0", "2.5"]
    (bench.tree / "artifacts/dialogues/rows.jsonl").write_text("other rows")
    bench.gate().run("voice", challenger)
    assert sorted(bench.scored[2:]) == ["2.0", "2.5"]


def test_without_promotion_nothing_moves(bench: Bench) -> None:
    bench.gate().run("voice", bench.model("a", "2.5"))
    decision = bench.gate(promote=False).run("voice", bench.model("b", "2.0"))
    assert decision.passed
    assert "would pass" in str(decision)
    assert bench.aliases() == {"champion": 1}
    assert "verdict" not in bench.registry.version("voice", "2").tags


def test_nobody_serves_below_the_floor(bench: Bench) -> None:
    bench.model("data/starters/voice", "4.0")
    with pytest.raises(GateError, match=r"no voice champion is there to serve.*gate.voice.floors"):
        bench.gate().run("voice", bench.model("a", "3.5"))
    assert "champion" not in bench.aliases()
    assert any("starting voice is left out" in line for line in bench.said)
    with pytest.raises(GateError, match="above its ceiling"):
        bench.gate().promote("voice", "2")
    with pytest.raises(GateError, match="no previous champion"):
        bench.gate().rollback("voice")


def test_a_champion_is_scored_on_its_own_base(bench: Bench) -> None:
    bench.gate().run("voice", bench.model("a", "2.5"))
    (bench.base / "weights.safetensors").write_text("another base")
    write_manifest(bench.base, "base-llm", files=["weights.safetensors"])
    (bench.tree / "artifacts/dialogues/rows.jsonl").write_text("new rows: score again")
    # `a` is the candidate again; its base left the tree, but was kept when it was registered
    assert bench.gate().run("voice", bench.tree / "a").passed
    assert bench.scored == ["2.5", "2.5"]


def test_missing_evidence_names_the_cure(bench: Bench) -> None:
    (bench.tree / "artifacts/dialogues/rows.jsonl").unlink()
    (bench.tree / "artifacts/dialogues").rmdir()
    with pytest.raises(
        GateError, match=r"artifacts/dialogues \(dialogues\) is missing; make it with: ohlora run"
    ):
        bench.gate().run("voice", bench.model("a", "2.5"))


def test_nothing_else_moves_an_alias() -> None:
    moving = re.compile(r"set_registered_model_alias|delete_registered_model_alias|\.(move|drop)_alias\(")
    found = {
        str(path.relative_to(ROOT))
        for folder in ("ohlora", "flows", "serving", "scripts")
        for path in (ROOT / folder).rglob("*.py")
        if moving.search(path.read_text(encoding="utf-8"))
    }
    assert found == {"ohlora/registry.py", "ohlora/evaluation/gate.py"}
