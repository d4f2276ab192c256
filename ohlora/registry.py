"""Runs, models and aliases in MLflow; the only module that knows it.

What a version holds are plain files with a manifest (safetensors and JSON), logged as such: MLflow's own
flavours would pickle them, or lose a LoRA adapter on a local base without a word. Versions are found by the
SHA-256 of their manifest, so that registering twice gives the same version. Aliases are moved by
`ohlora.evaluation.gate` alone; the methods for it are here because only this module talks to MLflow.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from filelock import FileLock

from ohlora.artifacts import MANIFEST, ArtifactError, Manifest, read_manifest, verify, verify_form
from ohlora.config import Config, state_dir
from ohlora.errors import UserError
from ohlora.lifeline import identity, is_alive
from ohlora.stage import REPORT, Journal, Report

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")
warnings.filterwarnings("ignore", module="mlflow")
import mlflow  # noqa: E402
from mlflow.entities import Metric, Param, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.tracking import MlflowClient  # noqa: E402

for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)

KINDS = ("labeler", "face", "voice", "memory")
PROCESS_TAG = "process"
_FLUSH_S = 3.0
_METRICS_A_CALL = 1000  # limits of MLflow's API
_PARAMS_A_CALL = 100


class RegistryError(UserError, RuntimeError):
    """A model, version or alias is not there, or the registry does not answer."""


@dataclass(frozen=True)
class Version:
    """One registered version of a model."""

    kind: str
    version: int
    sha256: str  # digest of its manifest
    aliases: tuple[str, ...]
    tags: dict[str, str]
    run_id: str | None
    created: float  # seconds since the epoch

    def __str__(self) -> str:
        return f"{self.kind} v{self.version}"


class RunJournal(Journal):
    """A journal that also sends its curves to an MLflow run, in batches: single calls cost 14 ms each."""

    def __init__(self, folder: Path, client: MlflowClient, run_id: str) -> None:
        super().__init__(folder)
        self.run_id = run_id
        self._client = client
        self._buffer: list[Metric] = []
        self._flushed = time.monotonic()

    def log(self, step: int, **metrics: float) -> None:
        super().log(step, **metrics)
        now = int(time.time() * 1000)
        self._buffer += [Metric(key, float(value), now, step) for key, value in metrics.items()]
        if time.monotonic() - self._flushed > _FLUSH_S:
            # SQLite may be busy with the server's writes: the points stay in the buffer for the next time.
            with contextlib.suppress(MlflowException):
                self.flush()

    def flush(self) -> None:
        """Send what is buffered."""
        self._flushed = time.monotonic()
        while self._buffer:
            self._client.log_batch(self.run_id, metrics=self._buffer[:_METRICS_A_CALL])
            del self._buffer[:_METRICS_A_CALL]

    def report(self, report: Report, folder: Path) -> None:
        """Log the final figures (`final/NAME`), pictures, tables and notes."""
        now = int(time.time() * 1000)
        self._buffer += [Metric(f"final/{key}", value, now, 0) for key, value in report.metrics.items()]
        self.flush()
        for name in report.pictures.values():
            self._client.log_artifact(self.run_id, str(folder / name), "pictures")
        for name in (REPORT, self.path.name):
            if (folder / name).is_file():
                self._client.log_artifact(self.run_id, str(folder / name))

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log rows as one table of the run, which MLflow shows side by side with those of other runs."""
        columns = {
            key: [row.get(key) for row in rows] for key in dict.fromkeys(k for row in rows for k in row)
        }
        self._client.log_table(self.run_id, data=columns, artifact_file=f"tables/{title.lower()}.json")


class Registry:
    """The registry of a work tree: SQLite and a folder by default, any MLflow server by `tracking.uri`."""

    def __init__(self, config: Config, root: Path | str = ".") -> None:
        self.state = state_dir(config, Path(root)).resolve()
        self.uri = config.tracking.uri or f"sqlite:///{self.state / 'mlflow.db'}"
        self.artifacts = config.tracking.artifacts or str(self.state / "mlartifacts")
        self.experiment = config.tracking.experiment
        self.state.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.state / "registry.lock", is_singleton=True, thread_local=False)
        try:
            with self._lock:  # the first use makes MLflow's tables
                self.client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
                self.experiment_id = self._experiment_id()
        except MlflowException as error:
            raise RegistryError(f"MLflow at {self.uri} does not answer: {error.message}") from error

    def _experiment_id(self) -> str:
        found = self.client.get_experiment_by_name(self.experiment)
        if found is not None:
            return str(found.experiment_id)
        place = self.artifacts if "://" in self.artifacts else Path(self.artifacts).resolve().as_uri()
        return str(self.client.create_experiment(self.experiment, artifact_location=place))

    # Runs

    @contextlib.contextmanager
    def run(
        self, name: str, *, tags: Mapping[str, str], params: Mapping[str, Any], folder: Path
    ) -> Iterator[RunJournal]:
        """Log a run: FINISHED at the end, FAILED on an error, KILLED when interrupted.

        Args:
            name: of the run.
            tags: lineage.
            params: flat settings.
            folder: gets `metrics.jsonl`.
        """
        all_tags = {**tags, PROCESS_TAG: identity(), "mlflow.source.name": f"ohlora stage {name}"}
        run_id = self.client.create_run(self.experiment_id, tags=all_tags, run_name=name).info.run_id
        entries = [Param(key, str(value)[:6000]) for key, value in params.items()]
        for start in range(0, len(entries), _PARAMS_A_CALL):
            self.client.log_batch(run_id, params=entries[start : start + _PARAMS_A_CALL])
        journal = RunJournal(folder, self.client, run_id)
        try:
            yield journal
            journal.flush()
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            with contextlib.suppress(MlflowException):
                journal.flush()
            self.client.log_batch(run_id, tags=[RunTag("error", f"{type(error).__name__}: {error}"[:4000])])
            self.client.set_terminated(run_id, status)
            raise
        self.client.set_terminated(run_id, "FINISHED")

    def reconcile(self) -> list[str]:
        """Mark the runs as KILLED that say RUNNING though their process is gone; returns their ids."""
        killed = []
        for run in self.client.search_runs([self.experiment_id], "attributes.status = 'RUNNING'"):
            process = run.data.tags.get(PROCESS_TAG)
            if process and not is_alive(process):
                self.client.set_terminated(run.info.run_id, "KILLED")
                killed.append(run.info.run_id)
        return killed

    # Versions

    def register(
        self,
        kind: str,
        folder: Path,
        run_id: str | None = None,
        *,
        tags: Mapping[str, str] | None = None,
        base: Path | None = None,
    ) -> Version:
        """Make a model folder a version; the one that holds the same weights already is returned as it is.

        Args:
            kind: one of `KINDS`.
            folder: model folder; only the files of its manifest are stored.
            run_id: run that trained it.
            tags: lineage of a new version.
            base: model folder of the adapter's base, kept so that the version stays usable when the
                pipeline moves on to another base.

        Raises:
            ArtifactError: the folder is not an intact model of this kind.
        """
        manifest = verify_form(folder, kind)
        with self._lock:
            if base is not None:
                self.keep_base(base)
            for version in self.versions(kind):
                if version.sha256 == manifest.digest:
                    return version
            return self._create(kind, folder, manifest, run_id, tags or {})

    def _create(
        self, kind: str, folder: Path, manifest: Manifest, run_id: str | None, tags: Mapping[str, str]
    ) -> Version:
        name = model_name(kind)
        model = self.client.create_logged_model(
            self.experiment_id, name=name, source_run_id=run_id, model_type=kind
        )
        with tempfile.TemporaryDirectory(dir=self.state, prefix="upload-") as temporary:
            copy_model(folder, Path(temporary), manifest)
            self.client.log_model_artifacts(model.model_id, temporary)
        self.client.finalize_logged_model(model.model_id, "READY")
        with contextlib.suppress(MlflowException):  # it exists
            self.client.create_registered_model(name)
        lineage = {**tags, "sha256": manifest.digest, "base_sha256": manifest.base.get("sha256", "")}
        # MLflow resolves `models:/` in the process-wide store, whatever this client's is.
        mlflow.set_tracking_uri(self.uri)
        created = self.client.create_model_version(
            name, f"models:/{model.model_id}", run_id, tags=lineage, model_id=model.model_id
        )
        return self.version(kind, str(created.version))

    def versions(self, kind: str) -> list[Version]:
        """All versions of a model, newest first."""
        name = model_name(kind)
        aliases = self._aliases(kind)
        found = self.client.search_model_versions(f"name = '{name}'", max_results=10_000)
        return sorted((self._version(kind, v, aliases) for v in found), key=lambda v: -v.version)

    def version(self, kind: str, name: str) -> Version:
        """The version of a number (`3`, `v3`) or an alias.

        Raises:
            RegistryError: there is none.
        """
        number = name.removeprefix("v")
        found = [v for v in self.versions(kind) if number == str(v.version) or name in v.aliases]
        if not found:
            known = [str(v.version) for v in self.versions(kind)]
            there_are = f"there are versions {', '.join(known)}" if known else "there are no versions yet"
            raise RegistryError(
                f"no {kind} {name!r} in the registry; {there_are}; train one with: ohlora run"
            )
        return found[0]

    def find(self, kind: str, alias: str) -> Version | None:
        """The version that carries an alias, or None."""
        return next((v for v in self.versions(kind) if alias in v.aliases), None)

    def fetch(self, kind: str, version: str | Version) -> Path:
        """Local folder of a version, with its hashes checked.

        Raises:
            RegistryError: there is no such version. ArtifactError: a file is missing or corrupt.
        """
        found = version if isinstance(version, Version) else self.version(kind, version)
        place = self.client.get_model_version_download_uri(model_name(kind), str(found.version))
        folder = self._local(place, found.sha256)
        try:
            manifest = verify_form(folder, kind)
        except ArtifactError as error:
            raise ArtifactError(f"{found} cannot be used: {error}") from error
        if manifest.digest != found.sha256:
            raise ArtifactError(f"{found} in {folder} is not what was registered; roll back or train again")
        return folder

    def _local(self, place: str, digest: str) -> Path:
        url = urlparse(place)
        if url.scheme in ("", "file"):
            folder = Path(unquote(url.path))
            moved = Path(self.artifacts) / "models" / folder.parent.name / folder.name
            return moved if not folder.is_dir() and moved.is_dir() else folder  # the tree was moved
        folder = self.state / "models" / digest
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=self.state, prefix="download-") as temporary:
                got = mlflow.artifacts.download_artifacts(
                    artifact_uri=place, dst_path=temporary, tracking_uri=self.uri
                )
                folder.parent.mkdir(parents=True, exist_ok=True)
                Path(got).rename(folder)
        return folder

    def tag(self, version: Version, **tags: str) -> Version:
        """Set tags of a version and return it anew."""
        for key, value in tags.items():
            self.client.set_model_version_tag(model_name(version.kind), str(version.version), key, value)
        return self.version(version.kind, str(version.version))

    def set_verdict(self, version: Version, verdict: str, reasons: str, **more: str) -> Version:
        """Write what the gate said onto a version: tags `verdict` and `verdict_reasons`."""
        return self.tag(version, verdict=verdict, verdict_reasons=reasons, **more)

    def move_alias(self, version: Version, alias: str) -> None:
        """Point an alias at a version. For the gate only."""
        self.client.set_registered_model_alias(model_name(version.kind), alias, str(version.version))

    def drop_alias(self, kind: str, alias: str) -> None:
        """Remove an alias if it is there. For the gate only."""
        if alias in self._aliases(kind):
            self.client.delete_registered_model_alias(model_name(kind), alias)

    def _aliases(self, kind: str) -> dict[str, str]:
        """`alias -> version`; a search for versions does not give them."""
        try:
            aliases = self.client.get_registered_model(model_name(kind)).aliases
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise RegistryError(f"MLflow at {self.uri} does not answer: {error.message}") from error
        return {alias: str(version) for alias, version in aliases.items()}

    @staticmethod
    def _version(kind: str, found: Any, aliases: Mapping[str, str]) -> Version:
        return Version(
            kind=kind,
            version=int(found.version),
            sha256=found.tags.get("sha256", ""),
            aliases=tuple(sorted(a for a, v in aliases.items() if v == str(found.version))),
            tags=dict(found.tags),
            run_id=found.run_id or None,
            created=found.creation_timestamp / 1000,
        )

    # Bases of adapters

    def keep_base(self, folder: Path) -> Path:
        """Keep a copy of a base model under its digest."""
        manifest = read_manifest(folder)
        target = self.state / "bases" / manifest.digest
        with contextlib.suppress(ArtifactError):
            verify(target)
            return target
        shutil.rmtree(target, ignore_errors=True)  # it is corrupt, or not there
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix="new-"))
        copy_model(folder, temporary, manifest, link=False)  # a link would change with the stage's output
        temporary.rename(target)
        return target

    def base(self, digest: str) -> Path | None:
        """Folder of a kept base with its hashes checked, or None.

        Raises:
            ArtifactError: it is corrupt.
        """
        folder = self.state / "bases" / digest
        if not folder.is_dir():
            return None
        verify(folder)
        return folder


def model_name(kind: str) -> str:
    """Name of a kind in MLflow.

    Raises:
        RegistryError: it is not one of `KINDS`.
    """
    if kind not in KINDS:
        raise RegistryError(f"unknown model {kind!r}; there are: {', '.join(KINDS)}")
    return f"ohlora-{kind}"


def copy_model(source: Path, target: Path, manifest: Manifest, *, link: bool = True) -> None:
    """Link (or copy) the files of a model folder, its manifest included, and nothing else."""
    for name in (MANIFEST, *manifest.files):
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if link:
            with contextlib.suppress(OSError):  # another file system, or one without hard links
                os.link((source / name).resolve(), place)
                continue
        shutil.copyfile(source / name, place)


def git_state(root: Path) -> dict[str, str]:
    """Tags `git_commit` and `git_dirty` of a work tree; "unknown" where there is no git."""

    def git(*arguments: str) -> str | None:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
            return done.stdout.strip()
        return None

    status = git("status", "--porcelain")
    dirty = "unknown" if status is None else str(bool(status)).lower()
    return {"git_commit": git("rev-parse", "HEAD") or "unknown", "git_dirty": dirty}
