"""The gate: a challenger serves only if it holds the floors and beats the champion on the same held-out data.

The floors are absolute and bind the first version too; the champion is scored again whenever data, settings
or the scorer changed. Every verdict is written onto the version. Nothing else in this code base moves an
alias: `champion` serves, `previous` is what it replaced, `challenger` is the last candidate that failed.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from ohlora.artifacts import MANIFEST, ArtifactError, read_manifest
from ohlora.config import Config, Floor, GateRule
from ohlora.errors import UserError
from ohlora.pipeline import STAGES, path_digest
from ohlora.registry import KINDS, Registry, Version

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
ROLLED_BACK = "rolled back"

Scorer = Callable[[Path, dict[str, Path], Config], dict[str, float]]

EVIDENCE: dict[str, tuple[str, ...]] = {
    "labeler": ("corpus",),
    "face": ("corpus", "judge", "filters", "parser"),
    "voice": ("dialogues", "base_llm", "probes", "examples"),
    "memory": ("pairs", "base_encoder"),
}
"""Inputs of the package stage that the scorer of each kind may read; a changed one means to score again."""

BASES = {"voice": "base_llm", "memory": "base_encoder"}
"""Which of them is the base of an adapter: each version is scored on its own."""

_SETTINGS = {
    "labeler": ("corpus", "labeling"),
    "face": ("corpus", "face", "face_test", "filters", "judge"),
    "voice": ("persona", "examples", "voice", "generation", "voice_test"),
    "memory": ("memory",),
}


class GateError(UserError, RuntimeError):
    """No model may serve, or an alias cannot be moved; the message says what to do."""


@dataclass(frozen=True)
class Verdict:
    """What the gate says and why."""

    passed: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Decision:
    """A verdict on a version, with what it was compared with."""

    version: Version
    verdict: Verdict
    scores: dict[str, float]
    champion: Version | None  # who serves after this
    champion_scores: dict[str, float]
    text: str  # for people

    @property
    def passed(self) -> bool:
        return self.verdict.passed

    def __str__(self) -> str:
        return self.text


def broken_floors(scores: Mapping[str, float], floors: list[Floor]) -> list[str]:
    """The floors that scores do not hold, as sentences; a missing or undefined metric holds none.

    >>> broken_floors({"pearson": 0.3}, [Floor(metric="pearson", at_least=0.5)])
    ['pearson 0.3 is below its floor 0.5']
    """
    broken = []
    for floor in floors:
        value = scores.get(floor.metric, math.nan)
        if math.isnan(value):
            broken.append(f"{floor.metric} could not be measured")
        elif floor.at_least is not None and value < floor.at_least:
            broken.append(f"{floor.metric} {value:.4g} is below its floor {floor.at_least:g}")
        elif floor.at_most is not None and value > floor.at_most:
            broken.append(f"{floor.metric} {value:.4g} is above its ceiling {floor.at_most:g}")
    return broken


def decide(
    challenger: Mapping[str, float],
    champion: Mapping[str, float] | None,
    rule: GateRule,
    name: str = "the champion",
) -> Verdict:
    """Whether a challenger may serve.

    Args:
        challenger: its scores on the held-out data.
        champion: scores of the reigning champion on the same data; None when there is none.
        rule: floors, the metric that decides, and by how much.
        name: of the champion, for the reasons.

    Returns:
        Passed if all floors hold and the champion is beaten by more than nothing and at least `min_gain`; a
        champion that breaks a floor itself has not to be beaten.
    """
    broken = broken_floors(challenger, rule.floors)
    if broken:
        return Verdict(False, tuple(broken))
    value = challenger.get(rule.primary, math.nan)
    if math.isnan(value):
        return Verdict(False, (f"{rule.primary} could not be measured",))
    if champion is None:
        return Verdict(True, ("holds the floors; there was no champion",))
    fallen = broken_floors(champion, rule.floors)
    if fallen:
        return Verdict(True, (f"holds the floors, {name} does not: {'; '.join(fallen)}",))
    reigning = champion.get(rule.primary, math.nan)
    if math.isnan(reigning):
        return Verdict(True, (f"{rule.primary} of {name} could not be measured",))
    gain = value - reigning if rule.higher_is_better else reigning - value
    if gain > 0 and gain >= rule.min_gain:
        return Verdict(True, (f"{rule.primary} {value:.4g} beats {name} ({reigning:.4g})",))
    by = f" by {rule.min_gain:g}" if rule.min_gain else ""
    return Verdict(False, (f"{rule.primary} {value:.4g} does not beat {name} ({reigning:.4g}){by}",))


class Gate:
    """The gate of one work tree.

    Args:
        config: settings; `config.gate` holds the rules.
        root: work tree whose artifacts are the evidence.
        registry: where versions are; opened when not given.
        scorers: kind -> function; `ohlora.evaluation.KIND.score` when not given.
        say: gets what a person waits for.
        known: scores by `score_key` that somebody measured on the same evidence in the same way.
    """

    def __init__(
        self,
        config: Config,
        root: Path | str = ".",
        *,
        registry: Registry | None = None,
        scorers: Mapping[str, Scorer] | None = None,
        say: Callable[[str], None] = print,
        known: Mapping[str, dict[str, float]] | None = None,
    ) -> None:
        self.known = known or {}
        self.config = config
        self.root = Path(root)
        self.registry = registry or Registry(config, root)
        self.scorers = scorers or {}
        self.say = say
        self._lock = FileLock(self.registry.state / "gate.lock", is_singleton=True, thread_local=False)

    def run(
        self, kind: str, candidate: Path, run_id: str | None = None, tags: Mapping[str, str] | None = None
    ) -> Decision:
        """Judge a model folder and move the aliases accordingly.

        Args:
            kind: one of labeler, face, voice, memory.
            candidate: model folder; registered if it is not yet.
            run_id: run that trained it.
            tags: lineage of a new version.

        Raises:
            GateError: nobody holds the floors and there is no champion, or a model cannot be scored.
            ArtifactError: the candidate or the champion is corrupt.
        """
        with self._lock:
            self._judge_starter(kind)
            base = self._base_at_hand(kind, candidate)
            version = self.registry.register(kind, candidate, run_id, tags=tags, base=base)
            return self._judge(version)

    def promote(self, kind: str, version: str) -> Decision:
        """Send a registered version through the gate once more; also lifts the ban of a rollback.

        Raises:
            RegistryError: there is no such version. GateError: it cannot be scored.
        """
        with self._lock:
            found = self.registry.version(kind, version)
            if found.tags.get("verdict") == ROLLED_BACK:
                found = self.registry.set_verdict(found, "candidate", "a person wants it back")
            return self._judge(found, force_promote=True)

    def rollback(self, kind: str) -> str:
        """Swap champion and previous; the fallen one stays out until a person promotes it.

        Raises:
            GateError: there is no previous champion. ArtifactError: its files are not intact.
        """
        with self._lock:
            champion = self.registry.find(kind, CHAMPION)
            previous = self.registry.find(kind, PREVIOUS)
            if champion is None or previous is None or champion.version == previous.version:
                raise GateError(f"{kind} has no previous champion to go back to; see: ohlora registry list")
            self.registry.fetch(kind, previous)
            self.registry.set_verdict(champion, ROLLED_BACK, f"a person went back to v{previous.version}")
            self.registry.move_alias(champion, PREVIOUS)
            self.registry.move_alias(previous, CHAMPION)
            self.registry.set_verdict(previous, CHAMPION, f"a person went back from v{champion.version}")
            return f"{kind} v{previous.version} serves again instead of v{champion.version}"

    def _judge_starter(self, kind: str) -> None:
        """Send the committed model of a kind through the gate, once; it is the first champion as a rule."""
        folder = self.root / self.config.gate.starters / kind
        if not self.config.gate.starters or not (folder / MANIFEST).is_file():
            return
        version = self.registry.register(
            kind, folder, tags={"source": "starter"}, base=self._base_at_hand(kind, folder)
        )
        if "verdict" in version.tags:
            return
        try:
            self.say(str(self._judge(version)))
        except GateError as error:
            self.say(f"the starting {kind} is left out: {error}")

    def _base_at_hand(self, kind: str, folder: Path) -> Path | None:
        """The tree's base model, if it is the one that the adapter in `folder` was trained on."""
        if kind not in BASES:
            return None
        base = self.root / STAGES["package"].inputs[BASES[kind]]
        wanted = read_manifest(folder).base.get("sha256")
        fits = (base / MANIFEST).is_file() and read_manifest(base).digest == wanted
        return base if fits else None

    def _judge(self, version: Version, force_promote: bool = False) -> Decision:
        kind = version.kind
        promote = self.config.gate.promote or force_promote
        champion = self.registry.find(kind, CHAMPION)
        scores = self.scores(version)
        if champion is not None and champion.version == version.version:
            text = f"{version} is the champion already: {self._headline(kind, scores)}"
            if broken := broken_floors(scores, self._rule(kind).floors):
                text += f"; it would not pass again: {'; '.join(broken)}"
            return Decision(version, Verdict(True, ("reigns",)), scores, champion, scores, text)
        champion_scores = self.scores(champion) if champion else None
        if version.tags.get("verdict") == ROLLED_BACK:
            cure = f"ohlora registry promote {kind} {version.version}"
            verdict = Verdict(False, (f"a person rolled it back; to try it again: {cure}",))
        else:
            name = f"champion v{champion.version}" if champion else ""
            verdict = decide(scores, champion_scores, self._rule(kind), name)
        reasons = "; ".join(verdict.reasons)
        if not promote:
            would = "would pass" if verdict.passed else "would be rejected"
            text = f"{version} {would}: {reasons}; nothing moves, gate.promote is off"
            return Decision(version, verdict, scores, champion, champion_scores or {}, text)
        if not verdict.passed:
            return self._reject(version, verdict, scores, champion, champion_scores)
        self.registry.move_alias(version, CHALLENGER)
        if champion is not None:  # in this order: whenever it is interrupted, a champion serves
            self.registry.move_alias(champion, PREVIOUS)
        self.registry.move_alias(version, CHAMPION)
        self.registry.drop_alias(kind, CHALLENGER)
        version = self.registry.set_verdict(version, CHAMPION, reasons, scores=json.dumps(scores))
        if champion is not None and champion.tags.get("verdict") == CHAMPION:
            self.registry.set_verdict(champion, "replaced", f"by v{version.version}: {reasons}")
        instead = f", instead of v{champion.version}" if champion else ""
        text = f"{version} is the new champion{instead}: {reasons}"
        return Decision(version, verdict, scores, version, scores, text)

    def _reject(
        self,
        version: Version,
        verdict: Verdict,
        scores: dict[str, float],
        champion: Version | None,
        champion_scores: dict[str, float] | None,
    ) -> Decision:
        reasons = "; ".join(verdict.reasons)
        if version.tags.get("verdict") != ROLLED_BACK:
            self.registry.move_alias(version, CHALLENGER)
            version = self.registry.set_verdict(version, "rejected", reasons, scores=json.dumps(scores))
        if champion is None:
            raise GateError(
                f"{version} rejected: {reasons}; and no {version.kind} champion is there to serve. "
                f"Train a better one (more steps or data), or lower gate.{version.kind}.floors in params.yaml"
            )
        who = "the starting champion" if champion.tags.get("source") == "starter" else f"v{champion.version}"
        text = f"{version} rejected: {reasons}; {who} keeps serving"
        return Decision(version, verdict, scores, champion, champion_scores or {}, text)

    def _rule(self, kind: str) -> GateRule:
        rule: GateRule = getattr(self.config.gate, kind)
        return rule

    def _headline(self, kind: str, scores: Mapping[str, float]) -> str:
        primary = self._rule(kind).primary
        return f"{primary} {scores.get(primary, math.nan):.4g}"

    # Scores

    def scores(self, version: Version) -> dict[str, float]:
        """Scores of a version on the held-out data of this tree; measured once for the same evidence.

        Raises:
            GateError: data or its base model is missing, or the scorer gave nothing usable.
        """
        inputs = self._evidence(version)
        scorer = self._scorer(version.kind)
        name = score_key(version.kind, version.sha256, inputs, self.config, scorer)
        key = "score_" + name[:16]
        if key in version.tags:
            stored: dict[str, float] = json.loads(version.tags[key])
            return stored
        if name in self.known:
            self.registry.tag(version, **{key: json.dumps(self.known[name])})
            return self.known[name]
        self.say(f"scoring {version} on held-out data …")
        folder = self.registry.fetch(version.kind, version)
        try:
            scores = {name: float(value) for name, value in scorer(folder, inputs, self.config).items()}
        except ArtifactError as error:
            raise GateError(f"{version} cannot be scored: {error}") from error
        self.registry.tag(version, **{key: json.dumps(scores)})
        return scores

    def _evidence(self, version: Version) -> dict[str, Path]:
        kind = version.kind
        inputs = {name: self.root / STAGES["package"].inputs[name] for name in EVIDENCE[kind]}
        wanted = version.tags.get("base_sha256")
        if kind in BASES and wanted:
            inputs[BASES[kind]] = self._base(version, inputs[BASES[kind]], wanted)
        for name, path in inputs.items():
            if not path.exists():
                raise GateError(
                    f"{version} cannot be scored: {path} ({name}) is missing; make it with: ohlora run"
                )
        return inputs

    def _base(self, version: Version, current: Path, wanted: str) -> Path:
        if (current / MANIFEST).is_file() and read_manifest(current).digest == wanted:
            return current
        kept = self.registry.base(wanted)
        if kept is None:
            raise GateError(
                f"{version} needs the base model {wanted[:12]}…, which is not here; "
                f"run the pipeline once with the settings it was trained with"
            )
        return kept

    def _scorer(self, kind: str) -> Scorer:
        if kind in self.scorers:
            return self.scorers[kind]
        if kind not in KINDS:
            raise GateError(f"unknown model {kind!r}; there are: {', '.join(KINDS)}")
        return scorer_of(kind)


def scorer_of(kind: str) -> Scorer:
    """The scorer of a kind of models."""
    scorer: Scorer = importlib.import_module(f"ohlora.evaluation.{kind}").score
    return scorer


def score_key(
    kind: str, digest: str, inputs: Mapping[str, Path], config: Config, scorer: Scorer | None = None
) -> str:
    """SHA-256 that names a measurement: the model, the evidence, the settings and the scorer's code.

    Args:
        kind: of the model.
        digest: of its manifest.
        inputs: those of `EVIDENCE`.
        config: settings.
        scorer: when not given, `scorer_of` the kind.
    """
    scorer = scorer or scorer_of(kind)
    module = inspect.getmodule(scorer)
    sources = [inspect.getsource(part) for part in (module or scorer, *getattr(module, "PARTS", ()))]
    parts = {
        "model": digest,
        "evidence": {name: path_digest(inputs[name]) for name in EVIDENCE[kind] if name in inputs},
        "settings": {name: getattr(config, name).model_dump(mode="json") for name in _SETTINGS[kind]},
        "scorer": hashlib.sha256("".join(sources).encode()).hexdigest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
