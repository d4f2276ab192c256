"""Which base and which adapter make the better voice? Candidates through one fine-tune and one evaluation.

Each candidate of `voice.candidates` is the effective settings plus its overrides. It runs in a process of its
own, so that its peak memory is its own, through the same functions as the stages `base_llm`, `dialogues` and
`voice` and the scorer of the gate. The results are one table: an MLflow run with a nested run per candidate.

    python -m ohlora.evaluation.voice_selection FOLDER PROFILE OVERRIDE...    what a candidate's process runs
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ohlora.artifacts import MANIFEST
from ohlora.config import Config, ConfigError, VoiceCandidate, load_config, state_dir
from ohlora.errors import UserError
from ohlora.lifeline import die_with_parent
from ohlora.pipeline import STAGES
from ohlora.registry import Registry, git_state
from ohlora.stage import Journal, Report

RESULT = "result.json"
PARENT_RUN = "mlflow.parentRunId"  # by this tag MLflow's pages nest runs


class SelectionError(UserError, RuntimeError):
    """The candidates cannot be compared; the message says what to do."""


class Selection:
    """One comparison: an open MLflow run, and a candidate at a time."""

    def __init__(
        self, root: Path, profile: str | None = None, overrides: Sequence[str] = (), names: Sequence[str] = ()
    ) -> None:
        """Read the settings of a work tree and of each candidate.

        Args:
            root: work tree.
            profile: its overlay.
            overrides: `key=value`, for all candidates.
            names: only these candidates.

        Raises:
            ConfigError: there are no candidates, a name is unknown or comes twice, or an override is not
                allowed.
        """
        self.root, self.profile, self.overrides = root, profile, tuple(overrides)
        self.config = load_config(root, profile, overrides)
        every = self.config.voice.candidates
        known = [candidate.name for candidate in every]
        if not every:
            raise ConfigError("voice.candidates is empty: name voices to compare, each with its overrides")
        if len(set(known)) < len(known):
            raise ConfigError(f"voice.candidates: a name comes twice among {', '.join(known)}")
        if unknown := sorted(set(names) - set(known)):
            raise ConfigError(f"unknown candidate {unknown[0]!r}; there are: {', '.join(known)}")
        self.candidates = [candidate for candidate in every if not names or candidate.name in names]
        for candidate in self.candidates:  # before the first one trains
            load_config(root, profile, [*overrides, *candidate.overrides])
        self.folder = state_dir(self.config, root).resolve() / "selection"
        self.rows: list[dict[str, Any]] = []
        self._registry = Registry(self.config, root)
        self._parent = ""

    @contextlib.contextmanager
    def opened(self) -> Iterator[Selection]:
        """Hold the MLflow run of the comparison; at its end it gets the table."""
        self._registry.reconcile()
        self.folder.mkdir(parents=True, exist_ok=True)
        tags = {"profile": self.config.profile, **git_state(self.root)}
        with self._registry.run("select voice", tags=tags, params={}, folder=self.folder) as journal:
            self._parent = journal.run_id
            yield self
            journal.table("Candidates", self.rows)

    def measure(self, candidate: VoiceCandidate) -> dict[str, Any]:
        """Fine-tune and score one candidate; returns its row of the table.

        Raises:
            SelectionError: its process failed; the message holds the end of what it said.
        """
        overrides = [*self.overrides, *candidate.overrides]
        folder = self.folder / candidate.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULT).unlink(missing_ok=True)
        params = {"candidate": candidate.name, "overrides": " ".join(overrides)}
        tags = {PARENT_RUN: self._parent, "profile": self.config.profile}
        with self._registry.run(
            f"voice {candidate.name}", tags=tags, params=params, folder=folder
        ) as journal:
            command = [sys.executable, "-m", __name__, str(folder), self.profile or "default", *overrides]
            log = folder / "log.txt"
            with log.open("wb") as f:
                code = subprocess.run(command, cwd=self.root, stdout=f, stderr=subprocess.STDOUT).returncode
            if code or not (folder / RESULT).is_file():
                tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
                raise SelectionError(
                    f"candidate {candidate.name} failed (exit {code}); {log}: " + " / ".join(tail)
                )
            result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
            for line in (folder / "voice" / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
                point = json.loads(line)
                journal.log(point.pop("step"), **point)
            journal.report(Report(metrics=result), folder)
        row = {"candidate": candidate.name, **result}
        self.rows.append(row)
        return row

    def best(self) -> str:
        """Name of the candidate that is first by the gate's primary metric."""
        rule = self.config.gate.voice
        sign = -1 if rule.higher_is_better else 1
        return str(min(self.rows, key=lambda row: sign * row[rule.primary])["candidate"])


def run_candidate(config: Config, folder: Path) -> dict[str, float]:
    """Build the base, fine-tune and score: what one candidate is measured by, in this process.

    Returns:
        The gate's figures of the voice; `seconds` of fine-tuning; `peak_memory_mb` of this process;
        `trained_megabytes` of the adapter's files.
    """
    from ohlora.artifacts import read_manifest
    from ohlora.evaluation.voice import score
    from ohlora.llm import bases, sft
    from ohlora.persona import dialogues

    base = config.voice.model_dump_json(include={"base", "hub_name", "scratch"})
    base_folder = folder.parent / f"base-{hashlib.sha256(base.encode()).hexdigest()[:12]}"
    try:
        read_manifest(base_folder)
    except UserError:
        bases.build(config, base_folder)
    rows_folder, examples = folder / "dialogues", _examples(config, folder)
    persona = {"persona": Path("data/persona"), "examples": examples}
    dialogues.run(config, persona, {"output": rows_folder}, Journal(folder / "journal"))
    output = folder / "voice"
    output.mkdir(parents=True, exist_ok=True)
    (output / "metrics.jsonl").unlink(missing_ok=True)
    started = time.monotonic()
    inputs = {"base": base_folder, "dialogues": rows_folder}
    report = sft.train(config, inputs, {"output": output}, Journal(output))
    seconds = time.monotonic() - started
    evidence = {
        "base_llm": base_folder,
        "dialogues": rows_folder,
        "examples": examples,
        "probes": Path(STAGES["package"].inputs["probes"]),
    }
    scores = score(output, evidence, config)
    megabytes = sum((output / name).stat().st_size for name in read_manifest(output).files) / 1e6
    return {
        **scores,
        "steps": report.metrics["steps"],
        "seconds": seconds,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,  # Linux gives KiB
        "trained_megabytes": megabytes,
    }


def _examples(config: Config, folder: Path) -> Path:
    """The examples of the work tree; where it has none yet, some made for all candidates."""
    from ohlora.memory import bases, example_stage, retriever

    made, out = Path(STAGES["examples"].output), folder.parent / "examples"
    encoder, adapter = folder.parent / "encoder", folder.parent / "retriever"
    if (made / MANIFEST).is_file():
        return made
    if not (out / MANIFEST).is_file():
        journal = Journal(folder / "journal")
        bases.run(config, {}, {"output": encoder}, journal)
        graded = {name: Path(STAGES["retriever"].inputs[name]) for name in ("grades", "rows")}
        retriever.train(config, {**graded, "base": encoder}, {"output": adapter}, journal)
        rows = {"rows": Path(config.persona.dialogues), "card": Path(config.persona.card)}
        example_stage.run(config, {**rows, "base": encoder, "retriever": adapter}, {"output": out}, journal)
    return out


def main(arguments: Sequence[str]) -> int:
    """The process of one candidate."""
    die_with_parent()
    folder, profile, *overrides = arguments
    try:
        result = run_candidate(load_config(Path(), profile, overrides), Path(folder))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    (Path(folder) / RESULT).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
