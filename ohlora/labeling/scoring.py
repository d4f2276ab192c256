"""What all the labeling models say about portraits, shard by shard.

`Labeler` is the models together, loaded once. A `ShardJob` is all that a process needs to score one shard of
a corpus; it writes one Parquet file, named by what it was made from. So a killed run goes on where it was,
and it does not matter who scored a shard: this process, or a worker of a cluster that shares the file system.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from ohlora.artifacts import read_manifest
from ohlora.attributes import ATTRIBUTE_NAMES, CONDITION_NAMES, FaceClass
from ohlora.config import Config, state_dir
from ohlora.corpus.portraits import Portraits
from ohlora.corpus.portraits import read_manifest as read_corpus_manifest
from ohlora.labeling.filters import Filters
from ohlora.labeling.formulas import ALGORITHMS, measure
from ohlora.labeling.parser import Parser
from ohlora.labeling.properties import Properties
from ohlora.labeling.segmentation import confusion

MODELS = ("parser", "filters", "properties")
BATCH = 32  # portraits at a time; bounds memory, and is the same for everybody who scores a shard


@dataclass(frozen=True)
class Reading:
    """What is in portraits; all arrays share their first axis n."""

    masks: NDArray[np.uint8]  # [n, h, w] of FaceClass
    attributes: dict[str, NDArray[np.float32]]  # the nine, [n], units of Attributes; NaN is unknown


@dataclass(frozen=True)
class Labeler:
    """The models that label a portrait, loaded once."""

    parser: Parser
    filters: Filters
    properties: Properties

    @classmethod
    def load(cls, folders: Mapping[str, Path | str], device: str = "auto") -> Labeler:
        """Load the model folders `parser`, `filters` and `properties`.

        Raises:
            ArtifactError: one of them is missing or corrupt.
        """
        return cls(
            Parser.load(Path(folders["parser"]), device),
            Filters.load(Path(folders["filters"]), device),
            Properties.load(Path(folders["properties"]), device),
        )

    def read(self, images: NDArray[np.uint8]) -> Reading:
        """Parse portraits uint8 [n, h, w, 3] and read their nine attributes with the networks.

        Raises:
            ValueError: not an array of RGB images.
        """
        found = {**self.filters.probabilities(images), **self.properties.values(images)}
        return Reading(self.parser.masks(images), {name: found[name] for name in ATTRIBUTE_NAMES})


@dataclass(frozen=True)
class ShardJob:
    """One shard to score: plain values, so that it travels to any process."""

    corpus: str  # folder of portraits
    shard: str  # file in it
    parser: str  # model folders
    filters: str
    properties: str
    models: str  # digest of the three
    out: str  # file to write
    device: str

    @property
    def is_done(self) -> bool:
        return Path(self.out).is_file()


def jobs(config: Config, inputs: Mapping[str, Path], root: Path) -> list[ShardJob]:
    """One job per shard of `inputs["corpus"]`, in its order.

    Args:
        config: settings.
        inputs: folders of the labels stage.
        root: work tree that `state` is relative to.

    Raises:
        CorpusError, ArtifactError: the corpus or a model is missing.
    """
    digests = [read_manifest(inputs[name]).digest for name in MODELS]
    models = hashlib.sha256("\n".join([*digests, _code()]).encode()).hexdigest()
    folder = state_dir(config, root).resolve() / "checkpoints" / "labels"
    return [
        ShardJob(
            corpus=str(inputs["corpus"].resolve()),
            shard=shard,
            **{name: str(inputs[name].resolve()) for name in MODELS},
            models=models,
            out=str(folder / f"{hashlib.sha256(f'{digest}{models}'.encode()).hexdigest()[:24]}.parquet"),
            device=config.runtime.device,
        )
        for shard, digest in read_corpus_manifest(inputs["corpus"])["files"].items()
    ]


@functools.cache
def _code() -> str:
    """SHA-256 of this room: scores of older code are not taken."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


_loading = threading.Lock()


@functools.lru_cache(maxsize=1)
def _labeler(parser: str, filters: str, properties: str, models: str, device: str) -> Labeler:
    return Labeler.load({"parser": parser, "filters": filters, "properties": properties}, device)


def score_shard(job: ShardJob) -> None:
    """Score the portraits of one shard and write them to `job.out`; nothing is done if that is there.

    It computes in one thread: the order of additions, and so the last bit, depends on their number. Whoever
    has more cores scores more shards at a time.

    Raises:
        CorpusError, ArtifactError: the shard or a model is missing or corrupt.
    """
    if job.is_done:
        return
    torch.set_num_threads(1)
    with _loading:
        labeler = _labeler(job.parser, job.filters, job.properties, job.models, job.device)
    portraits = Portraits.load(Path(job.corpus), job.shard)
    parts = [
        score(labeler, portraits.select(np.arange(i, min(i + BATCH, len(portraits)))))
        for i in range(0, len(portraits), BATCH)
    ]
    table = pa.concat_tables([pa.table(part) for part in parts])
    out = Path(job.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_suffix(f".{os.getpid()}-{threading.get_ident()}.tmp")
    pq.write_table(table, draft)
    draft.replace(out)


def score(labeler: Labeler, portraits: Portraits) -> dict[str, NDArray[np.generic]]:
    """Everything known about portraits, as columns [n].

    Returns:
        `identity`, `split`, `variant`; the nine attributes; `<algorithm>_<condition>` measured on predicted
        masks and `true_<algorithm>_<condition>` on true ones; `hit_<class>` and `union_<class>` in pixels;
        `truth_<attribute>`. NaN is unknown.
    """
    reading = labeler.read(portraits.images)
    columns: dict[str, NDArray[np.generic]] = {
        "identity": portraits.identity,
        "split": portraits.split.astype(object),
        "variant": portraits.variant.astype(object),
        **reading.attributes,
    }
    unknown = ~portraits.has_mask
    for algorithm in ALGORITHMS:
        for prefix, masks in (("", reading.masks), ("true_", portraits.masks)):
            measured = measure(masks, portraits.images, algorithm)
            for name, values in measured.items():
                blank = unknown if prefix else np.zeros_like(unknown)
                columns[f"{prefix}{algorithm}_{name}"] = np.where(blank, np.float32(np.nan), values)
    counts = np.stack(
        [confusion(t[None], p[None]) for t, p in zip(portraits.masks, reading.masks, strict=True)]
    )
    hits = np.diagonal(counts, axis1=1, axis2=2).astype(np.float32)
    unions = (counts.sum(1) + counts.sum(2)).astype(np.float32) - hits
    hits[unknown] = unions[unknown] = np.nan
    for c in FaceClass:
        columns[f"hit_{c.name.lower()}"] = hits[:, c]
        columns[f"union_{c.name.lower()}"] = unions[:, c]
    columns |= {f"truth_{name}": portraits.truth[name] for name in ATTRIBUTE_NAMES}
    return columns


def score_shards(work: Sequence[ShardJob], threads: int = 0) -> Iterator[None]:
    """Score shards in this process, some at a time; yields once per shard, in their order.

    Args:
        work: what to score.
        threads: shards at a time; 0 means one per core, and one on a GPU.

    Raises:
        CorpusError, ArtifactError: a shard or a model is missing or corrupt.
    """
    before = torch.get_num_threads()
    with ThreadPoolExecutor(threads or (1 if torch.cuda.is_available() else before)) as pool:
        try:
            yield from pool.map(score_shard, work)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(before)


def gather(done: Sequence[ShardJob]) -> dict[str, NDArray[np.generic]]:
    """The columns of all shards behind each other, [n] each; scores of other shards are removed."""
    table = pa.concat_tables([pq.read_table(job.out) for job in done])
    kept = {Path(job.out) for job in done}
    for folder in {path.parent for path in kept}:
        for old in folder.glob("*.parquet"):
            if old not in kept:
                old.unlink(missing_ok=True)
    columns = {}
    for name in table.schema.names:
        values = table[name].to_numpy()
        columns[name] = values.astype(np.str_) if values.dtype == object else values
    return columns


def conditions(columns: Mapping[str, NDArray[np.generic]], prefix: str) -> dict[str, NDArray[np.float32]]:
    """Columns `<prefix><condition>` by condition."""
    return {name: columns[f"{prefix}{name}"].astype(np.float32) for name in CONDITION_NAMES}
