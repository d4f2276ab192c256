"""Pack a product folder into a bento: `python -m serving.build PRODUCT_DIR`.

The bento holds the service, the modules of `ohlora` that it imports (found from its import statements), the
product with its weights, and a requirements list with every version pinned to `requirements.lock`. It starts
on a machine that has no repository, registry, DVC or network.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import bentoml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ohlora.artifacts import ArtifactError, verify, verify_form
from ohlora.chat.product import EXAMPLES
from serving import ROOT

ENTRY = "serving.service"
OURS = ("ohlora", "serving")
MODELS = ("face", "voice", "memory")
KEEP = 3  # bentos of a name that stay in the store


class BuildError(RuntimeError):
    """The product or the source cannot be packed."""


def say(line: str) -> None:
    """Progress; stdout belongs to the result."""
    print(line, file=sys.stderr, flush=True)


# What the bento imports


def module_file(name: str, root: Path = ROOT) -> Path | None:
    """File of one of our modules, `None` where the name is not a module but something in one."""
    path = root.joinpath(*name.split("."))
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    return path / "__init__.py" if (path / "__init__.py").is_file() else None


def imported_names(source: Path, module: str) -> Iterator[str]:
    """Absolute dotted names that a file imports anywhere, those under `if TYPE_CHECKING` left out."""
    package = module if source.name == "__init__.py" else module.rpartition(".")[0]
    pending: list[ast.AST] = [ast.parse(source.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (above, node.module) if part)
            yield from (f"{base}.{alias.name}" for alias in node.names)
            yield base
        else:
            pending.extend(ast.iter_child_nodes(node))


def source_files(root: Path = ROOT) -> list[Path]:
    """Our files that the service needs: its import closure, and what is not code beside those modules."""
    pending, modules = [ENTRY], dict[str, Path]()
    while pending:
        name = pending.pop()
        path = module_file(name, root)
        if name in modules or path is None:
            continue
        modules[name] = path
        parts = name.split(".")
        pending += [".".join(parts[:n]) for n in range(1, len(parts))]
        pending += [n for n in imported_names(path, name) if n.split(".")[0] in OURS]
    packages = {path.parent for path in modules.values() if path.name == "__init__.py"}
    # Data of a package lies in it or below it, but not in another package below it.
    data = {
        path
        for package in packages
        for path in package.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and _package_of(path) == package
    }
    return sorted({*modules.values(), *data})


def _package_of(path: Path) -> Path:
    return next(folder for folder in path.parents if (folder / "__init__.py").is_file())


# What it needs installed


def check_installable(files: list[Path], requirements: list[str], root: Path = ROOT) -> None:
    """Refuse source that imports, when it is loaded, a package that the bento does not ask for.

    Imports inside functions are not looked at: those of training are never reached while serving.

    Raises:
        BuildError: a package is missing from `serving/requirements.in`.
    """
    distributions = metadata.packages_distributions()
    pinned = {requirement.partition("==")[0] for requirement in requirements}
    for path in (path for path in files if path.suffix == ".py"):
        for name in sorted(_loaded_packages(path)):
            owners = {canonicalize_name(owner) for owner in distributions.get(name, [])}
            if name not in (*OURS, *sys.stdlib_module_names) and not owners & pinned:
                place = path.relative_to(root)
                raise BuildError(f"{place} imports {name}, which is not in serving/requirements.in")


def _loaded_packages(source: Path) -> set[str]:
    found = set()
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def read_lock(lock: Path) -> dict[str, str]:
    """Canonical name -> version of a compiled requirements list."""
    pin = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)
    pins = pin.findall(lock.read_text(encoding="utf-8"))
    return {canonicalize_name(name): version for name, version in pins}


def pinned_requirements(wanted: Path, lock: Path) -> list[str]:
    """`name==version` of the wanted packages and of everything they need on this platform.

    Raises:
        BuildError: one of them is not in the lock or not installed.
    """
    lines = (line.partition("#")[0].strip() for line in wanted.read_text(encoding="utf-8").splitlines())
    pending = [Requirement(line) for line in lines if line]
    pins, found, seen = read_lock(lock), dict[str, str](), set[tuple[str, str]]()
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            if name not in pins:
                raise BuildError(f"{name} is not in {lock.name}; compile it again: make lock")
            found[name] = pins[name]
            try:
                needs = metadata.requires(name) or []
            except metadata.PackageNotFoundError as error:
                raise BuildError(f"{name} is not installed; run: make setup") from error
            parsed = map(Requirement, needs)
            pending += [r for r in parsed if r.marker is None or r.marker.evaluate({"extra": extra})]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


# The bento


def link_or_copy(source: str, target: str) -> None:
    """Stage a large file without copying it where the file system allows."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def check_product(product: Path) -> dict[str, str]:
    """Verify the hashes of a product folder; returns model -> digest.

    Raises:
        BuildError: a part is missing, damaged, or a link to something outside.
    """
    for name in ("product.json", "persona.yaml"):
        if not (product / name).is_file():
            raise BuildError(
                f"{product} is not a product folder: {name} is missing; run: ohlora stage package"
            )
    if links := [path.name for path in product.rglob("*") if path.is_symlink()]:
        raise BuildError(f"{product} holds links, a bento must hold the files: {', '.join(links)}")
    try:
        if (product / EXAMPLES).exists():
            verify(product / EXAMPLES)
        return {model: verify_form(product / model, model).digest for model in MODELS}
    except ArtifactError as error:
        raise BuildError(str(error)) from error


def stage(product: Path, files: list[Path], folder: Path) -> None:
    """Lay out the bento's source: our files, and the product beside them."""
    for path in files:
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    shutil.copytree(product, folder / "product", copy_function=link_or_copy)


def check_no_machine_paths(bento: Path, paths: list[Path]) -> None:
    """Refuse a bento that tells where it was built.

    Raises:
        BuildError: a file holds one of the paths.
    """
    needles = [str(path).encode() for path in paths]
    for path in sorted(bento.rglob("*")):
        if path.is_file() and path.suffix != ".safetensors":
            body = path.read_bytes()
            if any(needle in body for needle in needles):
                raise BuildError(f"{path.relative_to(bento)} holds a path of this machine")


def build(product: Path, name: str = "ohlora") -> bentoml.Bento:
    """Build the bento into the store of `BENTOML_HOME` and drop all but the newest few of its name.

    Raises:
        BuildError: the product is incomplete or damaged, a requirement is not locked.
    """
    product = product.resolve()
    digests = check_product(product)
    wanted, lock = ROOT / "serving/requirements.in", ROOT / "requirements.lock"
    requirements = pinned_requirements(wanted, lock)
    files = source_files()
    check_installable(files, requirements)
    say(f"product verified, {len(requirements)} requirements pinned")
    with tempfile.TemporaryDirectory(prefix="ohlora-bento-") as temporary:
        folder = Path(temporary)
        stage(product, files, folder)
        say("packing the bento …")
        bento = bentoml.build(
            f"{ENTRY}:OhLoRA",
            name=name,
            build_ctx=str(folder),
            include=["ohlora/", "serving/", "product/"],
            labels={f"{model}-sha256": digest for model, digest in digests.items()},
            description="Oh-LoRA (오로라): a virtual human who talks, shows a face and remembers.",
            python={"packages": requirements, "lock_packages": False},
        )
        try:
            check_no_machine_paths(Path(bento.path), [ROOT, product, folder])
        except BuildError:
            bentoml.delete(bento.tag)
            raise
    for old in sorted(bentoml.list(name), key=lambda b: b.creation_time, reverse=True)[KEEP:]:
        say(f"dropping {old.tag}")
        bentoml.delete(old.tag)
    return bento


def main(arguments: list[str] | None = None) -> int:
    """Command line; the last line of stdout is JSON with the tag, the path and the size."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.build", description="Pack a product into a bento."
    )
    parser.add_argument("product", type=Path, help="folder that the package stage assembled")
    parser.add_argument("--name", default="ohlora", help="name of the bento (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        bento = build(options.product, options.name)
    except BuildError as error:
        say(f"error: {error}")
        return 1
    size = sum(path.stat().st_size for path in Path(bento.path).rglob("*") if path.is_file())
    print(json.dumps({"tag": str(bento.tag), "path": bento.path, "size_mb": round(size / 1e6, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
