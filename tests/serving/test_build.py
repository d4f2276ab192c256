"""What goes into a bento."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving import ROOT
from serving.build import (
    BuildError,
    check_installable,
    imported_names,
    pinned_requirements,
    read_lock,
    source_files,
)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    source = write(
        tmp_path / "ohlora/chat/turn.py",
        "from typing import TYPE_CHECKING\n"
        "import ohlora.config as c\n"
        "from . import session\n"
        "from ..gan import Face\n"
        "if TYPE_CHECKING:\n    from ohlora.cli import app\nelse:\n    import ohlora.stage\n"
        "def f():\n    from ohlora.llm import Voice\n",
    )
    names = set(imported_names(source, "ohlora.chat.turn"))
    assert names >= {"ohlora.config", "ohlora.chat.session", "ohlora.gan.Face", "ohlora.gan"}
    assert names >= {"ohlora.stage", "ohlora.llm.Voice"}
    assert "ohlora.cli" not in names


def test_only_the_import_closure_and_its_data_are_packed(tmp_path: Path) -> None:
    for name in ("serving/__init__.py", "ohlora/__init__.py", "ohlora/gan/__init__.py", "ohlora/cli.py"):
        write(tmp_path / name, "")
    write(tmp_path / "serving/service.py", "from ohlora.chat import Companion\n")
    write(tmp_path / "serving/page/index.html", "<!doctype html>")
    write(tmp_path / "ohlora/chat/__init__.py", "from ohlora.chat.turn import Companion\n")
    write(tmp_path / "ohlora/chat/turn.py", "class Companion: ...\n")
    write(tmp_path / "ohlora/chat/words.yaml", "{}")
    write(tmp_path / "ohlora/gan/huge.npz", "")
    packed = {path.relative_to(tmp_path).as_posix() for path in source_files(tmp_path)}
    assert packed == {
        *("serving/__init__.py", "serving/service.py", "serving/page/index.html", "ohlora/__init__.py"),
        *("ohlora/chat/__init__.py", "ohlora/chat/turn.py", "ohlora/chat/words.yaml"),
    }


def test_requirements_are_pinned_with_what_they_need(tmp_path: Path) -> None:
    wanted = write(tmp_path / "in", "# a comment\npydantic  # another\n")
    pins = pinned_requirements(wanted, ROOT / "requirements.lock")
    lock = read_lock(ROOT / "requirements.lock")
    assert f"pydantic=={lock['pydantic']}" in pins
    assert f"pydantic-core=={lock['pydantic-core']}" in pins
    assert not [pin for pin in pins if pin.startswith("email-validator")]  # an extra that nobody asked for


def test_a_requirement_outside_the_lock_is_refused(tmp_path: Path) -> None:
    wanted = write(tmp_path / "in", "pydantic\n")
    lock = write(tmp_path / "requirements.lock", "pydantic==2.0\n    # via nothing\n")
    with pytest.raises(BuildError, match=r"is not in requirements\.lock"):
        pinned_requirements(wanted, lock)


def test_source_that_needs_a_package_the_bento_lacks_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "ohlora/chat.py", "import json\nimport yaml\ndef f():\n    import mlflow\n")
    check_installable([source], ["pyyaml==1"], tmp_path)
    with pytest.raises(BuildError, match=r"ohlora/chat\.py imports yaml"):
        check_installable([source], ["pydantic==2"], tmp_path)
