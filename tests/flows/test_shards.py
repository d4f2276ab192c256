"""The shards of a corpus on Prefect's Dask task runner with a local cluster of two processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from prefect.testing.utilities import prefect_test_harness

pytest.importorskip("prefect_dask", reason="prefect-dask is not installed")

from flows.shards import score_shards_on_dask
from ohlora.attributes import CONDITION_NAMES
from ohlora.corpus.portraits import read_table, write
from ohlora.labeling import filters, parser, properties
from ohlora.labeling.classifier import CHANNELS, Classifier
from ohlora.labeling.property_network import PropertyNetwork
from ohlora.labeling.reliability import Scaling
from ohlora.labeling.scoring import jobs, score_shards
from ohlora.pipeline import STAGES
from tests.corpus.synthetic_portraits import synthetic_table
from tests.labeling.tiny_parser import tiny_config


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three shards of noise and models with random weights, where the pipeline has them."""
    monkeypatch.setattr("ohlora.corpus.portraits.ROWS_PER_SHARD", 8)
    folders = {name: tmp_path / path for name, path in STAGES["labels"].inputs.items()}
    write(folders["corpus"], synthetic_table(people=6, each=4, resolution=64), {})
    assert read_table(folders["corpus"]).num_rows == 24
    cpu, settings = torch.device("cpu"), parser.settings_of(tiny_config().labeling)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parser.save(parser.build_network(settings), settings, folders["parser"], {})
        networks = {task: [Classifier(CHANNELS[task])] for task in CHANNELS}
        boxes = {"eyes": (16, 20, 48, 36), "mouth": (20, 36, 44, 52)}
        network = PropertyNetwork(32, boxes, dict.fromkeys(CONDITION_NAMES, (0.5, 0.2)))
    scaling = {task: Scaling() for task in CHANNELS}
    filters.save(filters.Filters(networks, scaling, 32, cpu), folders["filters"], {})
    properties.save(properties.Properties(network, cpu), folders["properties"], {})
    return tmp_path


@pytest.mark.slow
def test_dask_scores_the_same_to_the_bit(server: None, tree: Path) -> None:
    config = tiny_config("state=state", "labeling.runner=dask", "labeling.workers=2")
    inputs = {name: tree / path for name, path in STAGES["labels"].inputs.items()}
    work = jobs(config, inputs, tree)
    assert score_shards_on_dask(config, tree) == 3
    there = [Path(job.out).read_bytes() for job in work]
    assert score_shards_on_dask(config, tree) == 0
    for job in work:
        Path(job.out).unlink()
    list(score_shards(work))
    here = [Path(job.out).read_bytes() for job in work]
    assert here == there
