"""The hand-written graph against transformers' Gemma 3, on random weights of every part's shape."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from ohlora.llm.networks import TransformersNetwork, network_for
from ohlora.llm.openvino_network import OpenVINONetwork


def model(key_value_heads: int = 1) -> Gemma3ForCausalLM:
    config = Gemma3TextConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=key_value_heads,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=8,  # shorter than the prompts
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Gemma3ForCausalLM(config).eval()
        for name, weight in network.named_parameters():
            if "norm" in name:  # zeros at first, which would hide a norm that is left out
                torch.nn.init.normal_(weight, std=0.3)
            else:
                torch.nn.init.normal_(weight, std=0.1)
    return network


def run(network: object, ids: torch.Tensor, mask: torch.Tensor, steps: int = 6) -> torch.Tensor:
    """Logits of a prompt and of greedy steps after it, [steps, n, vocabulary]."""
    session = network.start()  # type: ignore[attr-defined]
    rows = []
    step = ids
    for _ in range(steps):
        rows.append(session.forward(step, mask))
        step = rows[-1].argmax(-1, keepdim=True)
        mask = torch.cat([mask, torch.ones_like(step)], dim=1)
    session.close()
    return torch.stack(rows)


ROOT = Path(__file__).parents[2]
PROMPT = torch.tensor(
    [[2, 17, 45, 9, 101, 44, 23, 250, 8, 77, 61, 5], [0, 0, 0, 2, 17, 45, 9, 101, 44, 23, 250, 8]]
)
MASK = (PROMPT != 0).long()


@pytest.mark.parametrize("key_value_heads", [1, 2])
def test_in_float32_it_is_transformers(key_value_heads: int) -> None:
    reference = model(key_value_heads)
    expected = run(TransformersNetwork(reference), PROMPT, MASK)
    torch.testing.assert_close(
        run(OpenVINONetwork(reference, "float32"), PROMPT, MASK), expected, atol=2e-4, rtol=1e-4
    )


def test_in_int8_it_is_near_and_mostly_says_the_same() -> None:
    reference = model()
    network = OpenVINONetwork(reference)
    expected = TransformersNetwork(reference).start().forward(PROMPT, MASK)
    close = network.start().forward(PROMPT, MASK)
    assert (close - expected).abs().mean() < 0.03 * expected.std()
    agree = []
    generator = torch.Generator().manual_seed(1)
    for _ in range(40):
        ids = torch.randint(1, 300, (1, 10), generator=generator)
        ones = torch.ones_like(ids)
        session = network.start()
        agree.append(
            session.forward(ids, ones).argmax()
            == TransformersNetwork(reference).start().forward(ids, ones).argmax()
        )
        session.close()
    assert torch.stack(agree).float().mean() >= 0.9


def test_sessions_do_not_disturb_each_other_and_begin_empty() -> None:
    network = OpenVINONetwork(model())
    ids, mask = PROMPT[:1], MASK[:1]
    first = network.start()
    alone = first.forward(ids, mask)
    second = network.start()
    second.forward(ids[:, :5], mask[:, :5])
    step = torch.tensor([[7]])
    longer = torch.cat([mask, torch.ones_like(step)], dim=1)
    continued = first.forward(step, longer)
    first.close()
    again = network.start()  # takes the request that the first gave back
    torch.testing.assert_close(again.forward(ids, mask), alone)
    torch.testing.assert_close(again.forward(step, longer), continued)


def test_auto_takes_openvino_for_gemma_on_a_cpu_only() -> None:
    assert isinstance(network_for(model()), OpenVINONetwork)
    assert isinstance(network_for(model(), "transformers"), TransformersNetwork)
    other = model()
    other.config.model_type = "gpt_neox"
    assert isinstance(network_for(other), TransformersNetwork)
    with pytest.raises(ValueError, match=r"set it to auto or transformers"):
        network_for(other, "openvino")


QUIET = """
import socket
def refused(*_arguments, **_options):
    raise AssertionError("somebody opens a connection")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refused
import openvino_telemetry
class Loud:
    def __init__(self, *_arguments, **_options):
        raise AssertionError("telemetry is switched on")
openvino_telemetry.Telemetry = Loud
from tests.llm.test_openvino_network import MASK, PROMPT, OpenVINONetwork, model
print(OpenVINONetwork(model()).start().forward(PROMPT, MASK).shape)
"""


def test_nothing_is_reported_to_anybody() -> None:
    """Importing OpenVINO would tell its maker."""
    done = subprocess.run([sys.executable, "-c", QUIET], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Size" in done.stdout
