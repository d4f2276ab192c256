"""What reaches people: the champions, merged and copied into one product folder, and the bento of it.

A product folder needs no registry, no DVC and no network. It is named by what it is made of, so the same
champions and settings are assembled once; it appears by a rename, so nobody sees half of one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ohlora.artifacts import (
    MANIFEST,
    ArtifactError,
    Manifest,
    read_manifest,
    sha256_file,
    verify,
    verify_form,
)
from ohlora.chat.product import EXAMPLES
from ohlora.config import Config, state_dir
from ohlora.errors import UserError
from ohlora.evaluation.face_stage import BEST, SCORES
from ohlora.evaluation.gate import CHAMPION, Decision, Gate, GateError
from ohlora.memory.examples import ENCODER
from ohlora.pipeline import STAGES, inputs_digest
from ohlora.registry import KINDS, Registry, Version, copy_model, git_state
from ohlora.services import newest_bento, server_environment
from ohlora.stage import REPORT, Journal, Report

PRODUCT = "product.json"
SERVED = ("face", "voice", "memory")  # the labeler labels; it is not served
CANDIDATES = {"labeler": "parser", "face": "face", "voice": "preference", "memory": "memory"}
_BASES = {"voice": "base_llm", "memory": "base_encoder"}
_KEPT = 3
_FORMAT = 1


class PackageError(UserError, RuntimeError):
    """The product cannot be put together; the message says what to do."""


def run(config: Config, inputs: dict[str, Path], outputs: dict[str, Path], journal: Journal) -> Report:
    """The stage: judge the candidates, assemble the champions, build the bento.

    Raises:
        GateError: of a kind nobody holds the floors. PackageError: there is no product to be made.
    """
    gate = Gate(config, known=json.loads((inputs["face_test"] / SCORES).read_text(encoding="utf-8")))
    decisions, refused = [], []
    for kind in journal.progress(KINDS, "gate"):
        folder = inputs[CANDIDATES[kind]] if kind != "face" else best_face(inputs["face_test"])
        try:
            decisions.append(gate.run(kind, folder, _run_of(folder), _lineage(folder, config)))
        except GateError as error:
            refused.append(str(error))
    if refused:
        raise GateError("\n".join(refused))
    product = assemble_current(config, Path())
    bento = build_bento(product, config, Path())
    output = outputs["output"]
    (output / "bento.json").write_text(json.dumps(bento, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(product / PRODUCT, output / PRODUCT)
    return Report(
        metrics={
            f"{d.version.kind}_{name}": value
            for d in decisions
            for name, value in (d.champion_scores if d.champion else d.scores).items()
        },
        tables={"verdicts": [_row(d) for d in decisions]},
        notes=[str(d) for d in decisions],
    )


def best_face(tested: Path) -> Path:
    """Model folder of the candidate that won the stage `face_test`.

    Raises:
        ArtifactError: it was made again since.
    """
    best = json.loads((tested / BEST).read_text(encoding="utf-8"))
    folder = Path(best["folder"])
    if read_manifest(folder).digest != best["sha256"]:
        raise ArtifactError(f"{folder} is not what was tested; run: ohlora run --force face_test")
    return folder


def _run_of(folder: Path) -> str | None:
    """MLflow run that trained the model in a stage's output, or in a folder of it."""
    report = next((f / REPORT for f in (folder, folder.parent) if (f / REPORT).is_file()), folder / REPORT)
    return Report.model_validate_json(report.read_bytes()).run_id if report.is_file() else None


def _lineage(folder: Path, config: Config) -> dict[str, str]:
    """Tags of a candidate that its stage did not register itself: a variant of the face."""
    stage = next((s for s in STAGES.values() if Path(s.output) in (folder, folder.parent)), None)
    if stage is None or stage.model is not None:
        return {}
    inputs = {key: Path(path) for key, path in stage.inputs.items()}
    return {
        "stage": stage.name,
        "profile": config.profile,
        "inputs_sha256": inputs_digest(inputs),
        **git_state(Path.cwd()),
    }


def _row(decision: Decision) -> dict[str, Any]:
    return {
        "model": decision.version.kind,
        "version": decision.version.version,
        "passed": decision.passed,
        "champion": decision.champion.version if decision.champion else None,
        "reasons": "; ".join(decision.verdict.reasons),
        **decision.scores,
    }


def assemble(config: Config, root: Path, out: Path) -> Path:
    """Write the product folder of the champions to `out`, which must not exist.

    Raises:
        PackageError: a champion, its base or the character card is missing.
        ArtifactError: a model is corrupt, or does not fit its base.
    """
    from ohlora.llm import merge as merge_voice
    from ohlora.memory import merge as merge_memory

    registry = Registry(config, root)
    champions = _champions(registry)
    card = _card(config, root)
    out.mkdir(parents=True)
    for kind, merge in (("face", None), ("voice", merge_voice), ("memory", merge_memory)):
        folder = registry.fetch(kind, champions[kind])
        manifest = read_manifest(folder)
        if merge is None or not manifest.base:
            (out / kind).mkdir()
            copy_model(folder, out / kind, manifest, link=False)
        else:
            merge(_base(registry, root, kind, manifest), folder, out / kind)
    shutil.copyfile(card, out / "persona.yaml")
    if config.examples.shown:
        _copy_examples(_examples(root), out / EXAMPLES)
    body = {
        "format": _FORMAT,
        "models": {
            kind: {"version": champions[kind].version, "sha256": champions[kind].sha256} for kind in SERVED
        },
        **_settings(config),
    }
    (out / PRODUCT).write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return out


def assemble_current(config: Config, root: Path) -> Path:
    """The product of the champions and settings, assembled unless it is there; it becomes the current one.

    Raises:
        PackageError, ArtifactError: as `assemble`.
    """
    folder = _products(config, root) / product_digest(config, root)[:12]
    if not _is_intact(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="new-") as temporary:
            assemble(config, root, Path(temporary) / "product").rename(folder)
    pointer = folder.parent / "current.new"
    pointer.write_text(folder.name + "\n", encoding="utf-8")
    pointer.rename(folder.parent / "current")
    _prune(folder)
    return folder


def current_product(config: Config, root: Path) -> Path:
    """The product folder that was assembled last.

    Raises:
        PackageError: there is none yet.
    """
    pointer = _products(config, root) / "current"
    folder = pointer.parent / pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else None
    if folder is None or not (folder / PRODUCT).is_file():
        raise PackageError("nothing was packaged yet; run the pipeline first: ohlora run")
    return folder


def build_bento(product: Path, config: Config, root: Path) -> dict[str, Any]:
    """Pack a product folder into a bento; returns its tag, path, size_mb and the product's name.

    Raises:
        PackageError: the build failed; the message ends with its last lines.
    """
    done = subprocess.run(
        [sys.executable, "-m", "serving.build", str(product)],
        cwd=root,
        env=server_environment(config, root),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in (done.stdout or "").splitlines() if line.strip()]
    try:
        if done.returncode != 0:
            raise ValueError(f"exit code {done.returncode}")
        built: dict[str, Any] = json.loads(lines[-1])
        return {**built, "tag": built["tag"], "path": built["path"], "product": product.name}
    except (ValueError, IndexError, KeyError) as error:
        tail = "\n".join([*lines, *(done.stderr or "").splitlines()][-20:])
        raise PackageError(f"the bento was not built ({error}):\n{tail}") from error


def is_stale(config: Config, root: Path) -> bool:
    """Whether the last bento was made of other champions or settings than are current, or is gone."""
    try:
        built = json.loads((root / STAGES["package"].output / "bento.json").read_text(encoding="utf-8"))
        product = current_product(config, root)
        newest = newest_bento(state_dir(config, root).resolve())
        wanted = product_digest(config, root)[:12]
    except (OSError, ValueError, UserError):
        return True
    return not (built.get("product") == product.name == wanted and newest is not None)


def product_digest(config: Config, root: Path) -> str:
    """SHA-256 that names a product: champions, character card and settings that it carries.

    Raises:
        PackageError: a champion or the card is missing.
    """
    champions = _champions(Registry(config, root))
    parts = {
        "format": _FORMAT,
        "models": {kind: [champions[kind].version, champions[kind].sha256] for kind in SERVED},
        "card": sha256_file(_card(config, root)),
        "shown": read_manifest(_examples(root)).digest if config.examples.shown else "",
        **_settings(config),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _settings(config: Config) -> dict[str, Any]:
    return {
        "generation": config.generation.model_dump(mode="json"),
        "examples": config.examples.model_dump(mode="json"),
        "memory": config.memory.model_dump(
            mode="json", include={"threshold", "top_k", "multi_valued", "own_words"}
        ),
        "max_message_chars": config.serving.max_message_chars,
    }


def _champions(registry: Registry) -> dict[str, Version]:
    found = {kind: registry.find(kind, CHAMPION) for kind in SERVED}
    missing = [kind for kind, version in found.items() if version is None]
    if missing:
        raise PackageError(
            f"no champion for {', '.join(missing)}: train and judge one with: ohlora run "
            "(with gate.promote on; off, the gate moves nothing)"
        )
    return {kind: version for kind, version in found.items() if version is not None}


def _card(config: Config, root: Path) -> Path:
    card = root / config.persona.card
    if not card.is_file():
        raise PackageError(f"the character card {card} is missing; see persona.card in params.yaml")
    return card


def _examples(root: Path) -> Path:
    folder = root / STAGES["package"].inputs["examples"]
    if not (folder / MANIFEST).is_file():
        raise PackageError(f"there are no examples in {folder}; make them with: ohlora run --target examples")
    return folder


def _copy_examples(source: Path, out: Path) -> None:
    """The pairs, their vectors and the encoder; neighbours of rows are for training."""
    for folder, target in ((source, out), (source / ENCODER, out / ENCODER)):
        target.mkdir(parents=True)
        copy_model(folder, target, verify(folder), link=False)


def _base(registry: Registry, root: Path, kind: str, manifest: Manifest) -> Path:
    wanted = manifest.base["sha256"]
    for folder in (registry.base(wanted), root / STAGES["package"].inputs[_BASES[kind]]):
        try:
            if folder is not None and read_manifest(folder).digest == wanted:
                return folder
        except ArtifactError:
            continue
    raise PackageError(
        f"the {kind} champion needs the base model {manifest.base.get('name', '')} {wanted[:12]}…, which is "
        "not here; run the pipeline with the settings it was trained with, or roll back"
    )


def _products(config: Config, root: Path) -> Path:
    return state_dir(config, root).resolve() / "product"


def _is_intact(folder: Path) -> bool:
    try:
        for kind in SERVED:
            verify_form(folder / kind, kind)
        if (folder / EXAMPLES).exists():
            verify(folder / EXAMPLES)
            verify(folder / EXAMPLES / ENCODER)
    except ArtifactError:
        return False
    return (folder / PRODUCT).is_file()


def _prune(current: Path) -> None:
    others = [f for f in current.parent.iterdir() if f.is_dir() and f != current]
    others.sort(key=lambda f: f.stat().st_mtime, reverse=True)
    for old in others[_KEPT - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
