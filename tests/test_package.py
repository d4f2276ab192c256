"""The product folder: put together from champions once, named by what it is made of, never half there."""

import json
import shutil
from pathlib import Path

import pytest

from ohlora.artifacts import ArtifactError, verify, write_manifest
from ohlora.config import Config, load_config
from ohlora.package import (
    PRODUCT,
    SERVED,
    PackageError,
    assemble,
    assemble_current,
    build_bento,
    current_product,
    is_stale,
)
from ohlora.registry import Registry

ROOT = Path(__file__).parents[1]


class Tree:
    """A work tree with whole models (no adapters) as champions."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = load_config(ROOT)
        card = root / self.config.persona.card
        card.parent.mkdir(parents=True)
        card.write_text("name: 오로라\n", encoding="utf-8")
        self.show("one")
        self.registry = Registry(self.config, root)

    def crown(self, kind: str, weights: str, base: str = "") -> None:
        folder = self.root / "made" / kind
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "w.safetensors").write_text(weights)
        write_manifest(
            folder, kind, files=["w.safetensors"], base={"name": "b", "sha256": base} if base else {}
        )
        self.registry.move_alias(self.registry.register(kind, folder), "champion")

    def show(self, pairs: str) -> None:
        """Examples with an encoder."""
        for folder, kind in (("", "examples"), ("encoder", "base-encoder")):
            place = self.root / "artifacts/examples" / folder
            place.mkdir(parents=True, exist_ok=True)
            (place / "w.safetensors").write_text(pairs)
            write_manifest(place, kind, files=["w.safetensors"])
        (self.root / "artifacts/examples/neighbours.json").write_text("{}")

    def settings(self, *overrides: str) -> Config:
        return load_config(ROOT, None, overrides)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State of a registry in which nothing was registered: its tables take seconds to make."""
    root = tmp_path_factory.mktemp("empty")
    Registry(load_config(ROOT), root)
    return root / ".ohlora"


@pytest.fixture
def tree(tmp_path: Path, empty: Path) -> Tree:
    shutil.copytree(empty, tmp_path / ".ohlora")
    return Tree(tmp_path)


def test_a_product_is_complete_verified_and_made_once(tree: Tree) -> None:
    with pytest.raises(PackageError, match="nothing was packaged yet; run the pipeline first: ohlora run"):
        current_product(tree.config, tree.root)
    for kind in SERVED:
        tree.crown(kind, "one")
    product = assemble_current(tree.config, tree.root)
    assert sorted(f.name for f in product.iterdir()) == [
        "examples",
        "face",
        "memory",
        "persona.yaml",
        PRODUCT,
        "voice",
    ]
    verify(product / "examples", "examples")
    verify(product / "examples/encoder", "base-encoder")
    assert not (product / "examples/neighbours.json").exists()  # of training only
    for kind in SERVED:
        verify(product / kind, kind)
    body = json.loads((product / PRODUCT).read_text(encoding="utf-8"))
    assert body["models"]["voice"] == {
        "version": 1,
        "sha256": tree.registry.version("voice", "1").sha256,
    }
    assert body["generation"]["temperature"] == tree.config.generation.temperature
    assert current_product(tree.config, tree.root) == product

    stamp = (product / PRODUCT).stat().st_mtime_ns
    assert assemble_current(tree.config, tree.root) == product
    assert (product / PRODUCT).stat().st_mtime_ns == stamp


def test_other_champions_or_settings_are_another_product(tree: Tree) -> None:
    for kind in SERVED:
        tree.crown(kind, "one")
    first = assemble_current(tree.config, tree.root)
    warmer = assemble_current(tree.settings("generation.temperature=1.2"), tree.root)
    assert warmer != first
    seen = [first, warmer]
    for weights in ("two", "three"):
        tree.crown("face", weights)
        seen.append(assemble_current(tree.config, tree.root))
    tree.show("two")
    seen.append(assemble_current(tree.config, tree.root))
    assert len(set(seen)) == 5
    assert current_product(tree.config, tree.root) == seen[-1]
    kept = {f for f in first.parent.iterdir() if f.is_dir()}
    assert kept == set(seen[2:])
    silent = assemble_current(tree.settings("examples.shown=0"), tree.root)
    assert not (silent / "examples").exists()


def test_a_damaged_product_is_put_together_again(tree: Tree) -> None:
    for kind in SERVED:
        tree.crown(kind, "one")
    product = assemble_current(tree.config, tree.root)
    for part, kind in (("face", "face"), ("examples", "examples"), ("examples/encoder", "base-encoder")):
        (product / part / "w.safetensors").write_text("garbage")
        assert assemble_current(tree.config, tree.root) == product
        assert verify(product / part, kind)


def test_what_is_missing_is_named_and_nothing_half_stays(tree: Tree) -> None:
    tree.crown("face", "one")
    with pytest.raises(PackageError, match="no champion for voice, memory"):
        assemble_current(tree.config, tree.root)
    tree.crown("memory", "one")
    shutil.move(tree.root / "artifacts/examples", tree.root / "elsewhere")
    tree.crown("voice", "one")
    with pytest.raises(PackageError, match="make them with: ohlora run --target examples"):
        assemble_current(tree.config, tree.root)
    shutil.move(tree.root / "elsewhere", tree.root / "artifacts/examples")
    tree.crown("voice", "adapter", base="0" * 64)
    with pytest.raises(PackageError, match=r"the voice champion needs the base model b 000000000000…"):
        assemble_current(tree.config, tree.root)
    tree.crown("voice", "one")
    stored = tree.registry.fetch("face", "champion")
    (stored / "w.safetensors").write_text("garbage")
    with pytest.raises(ArtifactError, match="face v1 cannot be used"):
        assemble(tree.config, tree.root, tree.root / "out")
    with pytest.raises(ArtifactError, match="face v1 cannot be used"):
        assemble_current(tree.config, tree.root)
    assert list((tree.root / ".ohlora/product").iterdir()) == []


def test_a_bento_of_other_champions_is_stale(tree: Tree) -> None:
    for kind in SERVED:
        tree.crown(kind, "one")
    assert is_stale(tree.config, tree.root)
    product = assemble_current(tree.config, tree.root)
    store = tree.root / ".ohlora/bentoml/bentos/ohlora"
    (store / "abc").mkdir(parents=True)
    (store / "latest").write_text("abc")
    built = tree.root / "artifacts/package"
    built.mkdir(parents=True)
    (built / "bento.json").write_text(json.dumps({"tag": "ohlora:abc", "product": product.name}))
    assert not is_stale(tree.config, tree.root)
    assert is_stale(tree.settings("memory.top_k=5"), tree.root)
    tree.crown("voice", "two")
    assert is_stale(tree.config, tree.root)
    tree.registry.move_alias(tree.registry.version("voice", "1"), "champion")
    assert not is_stale(tree.config, tree.root)
    shutil.rmtree(store / "abc")
    assert is_stale(tree.config, tree.root)


def test_a_failed_build_shows_why(tree: Tree) -> None:
    config = tree.settings(f"state={tree.root / '.ohlora'}")
    with pytest.raises(PackageError, match=r"the bento was not built \(exit code \d+\)(.|\n)*is missing"):
        build_bento(tree.root / "nothing", config, ROOT)
