"""Gemma 3 as an OpenVINO graph with 8-bit weights, built in memory from the loaded transformers model.

Writing one token reads every weight once, so on a CPU the bytes of a weight are what a token costs. Matrices
are stored as int8 with a float32 scale for every 64 weights of a row (symmetric rounding); activations,
norms, attention and arithmetic stay float32. One scale per row was about as fast and four times as far from
float32. The graph is written op by op instead of traced: it loads in a second, needs no converter, and takes
left-padded batches. Architecture: Gemma 3 technical report, arXiv:2503.19786, and transformers'
`modeling_gemma3`, against which a test compares logits and tokens.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MASKED = -1e30
GROUP = 64  # weights that share a scale
TELEMETRY = "openvino_telemetry"


def import_quietly() -> None:
    """Import OpenVINO without its telemetry, which reports to its maker that somebody imported it.

    It takes a stub of its own where the package `openvino_telemetry` is missing; so it is, while it imports.
    """
    if "openvino" in sys.modules:
        return
    known = sys.modules.get(TELEMETRY)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # Python's way to say that there is none
    try:
        import openvino  # noqa: F401
    finally:
        del sys.modules[TELEMETRY]
        if known is not None:
            sys.modules[TELEMETRY] = known


class OpenVINONetwork:
    """A compiled network. Caches belong to the sessions that it starts."""

    def __init__(self, model: PreTrainedModel, weights: str = "int8", threads: int = 0) -> None:
        """Compile.

        Args:
            model: a `Gemma3ForCausalLM` in float32 on the CPU; not needed afterwards.
            weights: `int8`, or `float32` to compare with.
            threads: cores to use; 0 takes torch's number.
        """
        import_quietly()
        import openvino

        self.vocabulary: int = model.config.vocab_size
        self.context: int = model.config.max_position_embeddings
        self._idle: list[Any] = []
        self._compiled = openvino.Core().compile_model(
            _Builder(model, weights).build(),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "f32",  # bfloat16 would cost more quality than int8 weights do
                "KV_CACHE_PRECISION": "f32",
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",  # activations stay float32
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
            },
        )

    def start(self) -> OpenVINOSession:
        """A session with an empty cache."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        return OpenVINOSession(request, self._idle)


class OpenVINOSession:
    """A growing key-value cache."""

    def __init__(self, request: Any, idle: list[Any]) -> None:
        self._request = request
        self._idle = idle

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits after the last token: float32 [n, vocabulary].

        Args:
            ids: int64 [n, t], the tokens that the cache does not hold yet.
            mask: int64 [n, cached + t], 0 at padding.
        """
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self._request.infer(
            {"ids": ids.numpy(), "mask": mask.numpy(), "positions": positions.numpy()}, share_inputs=True
        )
        return torch.from_numpy(output[0].copy())

    def close(self) -> None:
        """Empty the cache and leave its request to the next session."""
        self._request.reset_state()
        self._idle.append(self._request)


class _Builder:
    """Names follow transformers' modules."""

    def __init__(self, model: Any, weights: str) -> None:
        import_quietly()
        import openvino.opset13 as ops

        self.ops = ops
        self.weights = weights
        self.config = model.config
        self.state = {name: value.detach().float().numpy() for name, value in model.state_dict().items()}
        self.sinks: list[Any] = []

    def build(self) -> Any:
        """The graph: `ids`, `mask`, `positions` (int64) to logits."""
        from openvino import Model

        ops, config = self.ops, self.config
        ids = ops.parameter([-1, -1], np.int64, name="ids")
        mask = ops.parameter([-1, -1], np.int64, name="mask")
        positions = ops.parameter([-1, -1], np.int64, name="positions")
        rows = ops.gather(ops.shape_of(ids), self.ints([0]), self.ints(0))
        head = ops.constant(np.array([config.num_key_value_heads], np.int64))
        self.empty = ops.broadcast(
            self.floats(0.0),
            ops.concat([rows, head, self.ints([0]), self.ints([config.head_dim])], 0),
        )
        x = ops.multiply(self.embed(ids), self.floats(math.sqrt(config.hidden_size)))
        visible = self.visible(ids, mask)
        biases = {"full_attention": visible[0], "sliding_attention": visible[1]}
        turns = {kind: self.rotations(kind, positions) for kind in biases}
        for layer, kind in enumerate(config.layer_types):
            x = self.layer(f"model.layers.{layer}.", x, biases[kind], turns[kind])
        last = ops.gather(x, self.ints([-1]), self.ints(1))
        logits = self.linear(self.norm(last, "model.norm"), "model.embed_tokens")
        result = ops.result(ops.squeeze(logits, self.ints([1])))
        return Model([result], self.sinks, [ids, mask, positions], "gemma3")

    def ints(self, value: Any) -> Any:
        return self.ops.constant(np.array(value, np.int64))

    def floats(self, value: Any) -> Any:
        return self.ops.constant(np.array(value, np.float32))

    def linear(self, x: Any, name: str) -> Any:
        """x · weightᵀ, the weight as int8 in groups along its rows, each with its own scale."""
        ops, weight = self.ops, self.state[f"{name}.weight"]
        if self.weights == "float32":
            return ops.matmul(x, self.floats(weight), False, True)
        rows, columns = weight.shape
        group = GROUP if columns % GROUP == 0 else columns
        grouped = weight.reshape(rows, columns // group, group)
        scale = np.maximum(np.abs(grouped).max(axis=2, keepdims=True), 1e-12) / 127
        stored = ops.constant(np.rint(grouped / scale).astype(np.int8))
        whole = ops.multiply(ops.convert(stored, np.float32), self.floats(scale))
        return ops.matmul(x, ops.reshape(whole, self.ints([rows, columns]), False), False, True)

    def embed(self, ids: Any) -> Any:
        # rows are looked up, never multiplied: they cost a token nothing and stay float32
        return self.ops.gather(self.floats(self.state["model.embed_tokens.weight"]), ids, self.ints(0))

    def norm(self, x: Any, name: str) -> Any:
        """RMSNorm; the stored weight is the difference from one."""
        ops = self.ops
        mean = ops.reduce_mean(ops.power(x, self.floats(2.0)), self.ints([-1]), True)
        scale = ops.divide(self.floats(1.0), ops.sqrt(ops.add(mean, self.floats(self.config.rms_norm_eps))))
        return ops.multiply(ops.multiply(x, scale), self.floats(1 + self.state[f"{name}.weight"]))

    def rotations(self, kind: str, positions: Any) -> tuple[Any, Any]:
        """Cosines and sines of rotary embeddings (arXiv:2104.09864): [n, 1, t, head_dim]."""
        ops, half = self.ops, self.config.head_dim // 2
        theta = self.config.rope_parameters[kind]["rope_theta"]
        frequencies = theta ** (-np.arange(half, dtype=np.float64) / half)
        angles = ops.multiply(
            ops.unsqueeze(ops.convert(positions, np.float32), self.ints([1, 3])),
            self.floats(np.concatenate([frequencies, frequencies])),
        )
        return ops.cos(angles), ops.sin(angles)

    def rotate(self, x: Any, turn: tuple[Any, Any]) -> Any:
        ops = self.ops
        left, right = ops.split(x, self.ints(-1), 2).outputs()
        turned = ops.concat([ops.multiply(right, self.floats(-1.0)), left], -1)
        return ops.add(ops.multiply(x, turn[0]), ops.multiply(turned, turn[1]))

    def visible(self, ids: Any, mask: Any) -> tuple[Any, Any]:
        """Additive masks [n, 1, t, cached + t] of full and of sliding attention."""
        ops = self.ops
        length = ops.gather(ops.shape_of(ids), self.ints(1), self.ints(0))
        total = ops.gather(ops.shape_of(mask), self.ints(1), self.ints(0))
        keys = ops.range(self.ints(0), total, self.ints(1), "i64")
        queries = ops.unsqueeze(
            ops.range(ops.subtract(total, length), total, self.ints(1), "i64"), self.ints(1)
        )
        present = ops.unsqueeze(ops.not_equal(mask, self.ints(0)), self.ints([1, 2]))
        before = ops.less_equal(ops.unsqueeze(keys, self.ints(0)), queries)
        near = ops.less(
            ops.subtract(queries, ops.unsqueeze(keys, self.ints(0))), self.ints(self.config.sliding_window)
        )
        seen = ops.logical_and(present, ops.unsqueeze(before, self.ints([0, 1])))
        close = ops.logical_and(seen, ops.unsqueeze(near, self.ints([0, 1])))
        return tuple(ops.select(m, self.floats(0.0), self.floats(MASKED)) for m in (seen, close))

    def cached(self, fresh: Any, name: str) -> Any:
        from openvino import PartialShape

        shape = PartialShape([-1, self.config.num_key_value_heads, -1, self.config.head_dim])
        past = self.ops.read_value(self.empty, name, np.float32, shape)
        whole = self.ops.concat([past, fresh], 2)
        self.sinks.append(self.ops.assign(whole, name))
        return whole

    def layer(self, name: str, x: Any, bias: Any, turn: tuple[Any, Any]) -> Any:
        ops = self.ops
        attended = self.attention(f"{name}self_attn.", self.norm(x, f"{name}input_layernorm"), bias, turn)
        x = ops.add(x, self.norm(attended, f"{name}post_attention_layernorm"))
        y = self.norm(x, f"{name}pre_feedforward_layernorm")
        gate = ops.gelu(self.linear(y, f"{name}mlp.gate_proj"), "tanh")
        y = self.linear(ops.multiply(gate, self.linear(y, f"{name}mlp.up_proj")), f"{name}mlp.down_proj")
        return ops.add(x, self.norm(y, f"{name}post_feedforward_layernorm"))

    def attention(self, name: str, x: Any, bias: Any, turn: tuple[Any, Any]) -> Any:
        ops, config = self.ops, self.config

        def heads(part: str, count: int) -> Any:
            split = ops.reshape(
                self.linear(x, f"{name}{part}_proj"), self.ints([0, 0, count, config.head_dim]), True
            )
            return ops.transpose(split, self.ints([0, 2, 1, 3]))

        query = self.rotate(self.norm(heads("q", config.num_attention_heads), f"{name}q_norm"), turn)
        key = self.rotate(self.norm(heads("k", config.num_key_value_heads), f"{name}k_norm"), turn)
        keys = self.cached(key, f"{name}key")
        values = self.cached(heads("v", config.num_key_value_heads), f"{name}value")
        groups = config.num_attention_heads // config.num_key_value_heads
        if config.num_key_value_heads > 1:
            keys, values = (self.repeat(each, groups) for each in (keys, values))
        scale = self.floats(config.query_pre_attn_scalar**-0.5)
        scores = ops.add(ops.multiply(ops.matmul(query, keys, False, True), scale), bias)
        mixed = ops.matmul(ops.softmax(scores, -1), values, False, False)
        flat = ops.reshape(
            ops.transpose(mixed, self.ints([0, 2, 1, 3])),
            self.ints([0, 0, config.num_attention_heads * config.head_dim]),
            True,
        )
        return self.linear(flat, f"{name}o_proj")

    def repeat(self, x: Any, groups: int) -> Any:
        """Each key-value head for its group of query heads."""
        ops = self.ops
        wide = ops.tile(ops.unsqueeze(x, self.ints(2)), self.ints([1, 1, groups, 1, 1]))
        shape = ops.shape_of(x)
        parts = [ops.gather(shape, self.ints([axis]), self.ints(0)) for axis in (0, 1, 2, 3)]
        parts[1] = ops.multiply(parts[1], self.ints([groups]))
        return ops.reshape(wide, ops.concat(parts, 0), False)
