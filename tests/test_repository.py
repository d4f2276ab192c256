"""Rules of the repository that a reader relies on: arrows between rooms, no pickle, no leaks, no bloat."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = {
    "config",
    "section",
    "persona_config",
    "variants_config",
    "attributes",
    "artifacts",
    "errors",
    "stage",
    "lifeline",
}
MAY_IMPORT = {  # docs/architecture.md, "Rooms"
    "persona": SHARED,
    "corpus": SHARED,
    "labeling": SHARED | {"corpus"},
    "gan": SHARED | {"corpus", "labeling"},
    "llm": SHARED | {"persona"},
    "memory": SHARED | {"persona"},
    "chat": SHARED | {"persona", "gan", "llm", "memory"},
    "evaluation": SHARED | {"persona", "corpus", "labeling", "gan", "llm", "memory", "registry", "pipeline"},
    "registry": SHARED,
}
TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".json", ".jsonl", ".txt", ".lock", ".sh", ""}
MIB = 1024 * 1024


def tracked() -> list[Path]:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True)
    return [ROOT / name for name in names.stdout.split("\0") if name and (ROOT / name).is_file()]


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_arrows_point_one_way(room: str) -> None:
    files = sources(f"ohlora/{room}") or [ROOT / "ohlora" / f"{room}.py"]
    for path in files:
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "ohlora" and len(parts) > 1:
                allowed = MAY_IMPORT[room] | {room, "__version__"}
                assert parts[1] in allowed, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("prefect", set()),
        ("bentoml", set()),
        ("mlflow", {"ohlora/registry.py"}),
    ],
)
def test_the_library_knows_no_orchestrator(library: str, allowed: set[str]) -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in sources("ohlora")
        if any(name.split(".")[0] == library for name in imports(path))
    }
    assert users <= allowed


def test_training_never_sees_the_judge() -> None:
    for path in sources("ohlora/gan", "ohlora/labeling", "ohlora/corpus"):
        assert not any(name.startswith("ohlora.evaluation") for name in imports(path)), path


def test_nothing_is_unpickled() -> None:
    forbidden = re.compile(
        r"torch\.load\((?!.*weights_only=True)|torch\.save\("
        r"|\bimport (?:pickle|cloudpickle|joblib|dill)\b|allow_pickle\s*=\s*True"
        r"|weights_only\s*=\s*False|trust_remote_code\s*=\s*True|yaml\.(?:unsafe_)?load\("
    )
    for path in sources("ohlora", "flows", "serving", "scripts", "benchmarks"):
        found = forbidden.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path.relative_to(ROOT)}: {found and found.group()}"


def test_foreign_checkpoints_are_read_in_two_places() -> None:
    """`.pth` files of others come in through an import command only; nothing else calls torch.load."""
    readers = {
        str(path.relative_to(ROOT))
        for path in sources("ohlora", "flows", "serving", "scripts", "benchmarks")
        if "torch.load(" in path.read_text(encoding="utf-8")
    }
    assert readers <= {"ohlora/labeling/teacher.py", "ohlora/gan/importing.py"}


def test_only_the_gate_moves_aliases() -> None:
    movers = {
        str(path.relative_to(ROOT))
        for path in sources("ohlora", "flows", "serving")
        if re.search(r"\.(?:set_alias|move_alias|delete_alias)\(", path.read_text(encoding="utf-8"))
    }
    assert movers <= {"ohlora/evaluation/gate.py"}
    callers = {
        str(path.relative_to(ROOT))
        for path in sources("ohlora", "flows", "serving")
        if "registered_model_alias" in path.read_text(encoding="utf-8")
    }
    assert callers <= {"ohlora/registry.py"}


def test_lock_file_holds_pins_only() -> None:
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        assert line.startswith("#") or re.fullmatch(
            r"(?:[A-Za-z0-9_.-]+(?:\[[a-z,]+\])?==\S+)|\s+#.*", line
        ), line
        assert "://" not in line
        assert " @ " not in line


def test_no_machine_path_is_committed() -> None:
    leak = re.compile(rb"(?<![\w.])/(?:work|root|home/\w+|Users/\w+)/[\w.]")
    for path in tracked():
        if path.suffix in {
            ".py",
            ".md",
            ".yaml",
            ".yml",
            ".toml",
            ".json",
            ".jsonl",
            ".txt",
            ".lock",
            ".sh",
            "",
        }:
            found = leak.search(path.read_bytes())
            assert found is None, f"{path.relative_to(ROOT)}: {found and found.group()!r}"


def test_the_repository_stays_small() -> None:
    sizes = {path: path.stat().st_size for path in tracked()}
    assert sum(sizes.values()) < 78 * MIB
    biggest = max(sizes, key=lambda path: sizes[path])
    assert sizes[biggest] < 20 * MIB, biggest


def test_no_file_outgrows_one_concept() -> None:
    for path in sources("ohlora", "flows", "serving"):
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= 600, f"{path.relative_to(ROOT)} has {lines} lines"


def test_every_package_says_which_question_it_answers() -> None:
    for path in sorted((ROOT / "ohlora").rglob("__init__.py")):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path
