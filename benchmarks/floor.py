"""The arithmetic floor: what any implementation must add to the bare base, at the speed this machine has shown.

A prefix adds floating-point operations (each query meets each of its tokens) and bytes (each different prefix is read
once a step). The floor is the base's own time and the longer of the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import LlamaConfig

from benchmarks.measure import interleave
from benchmarks.peers import setting

_FORWARD, _BACKWARD = 2, 5
"""Products of queries with prefix tokens: scores and output; backward, the scores again and four gradients."""


@dataclass(frozen=True)
class Speed:
    """What this machine reaches: operations a second in a large product, bytes a second when it reads them."""

    flops: float
    bytes: float


def measure_speed() -> Speed:
    """Time a product of large matrices and the sum of a large vector."""
    _, device, dtype = setting()
    side = 2048 if device.type == "cpu" else 8192
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    vector = torch.ones(2**26, device=device)
    calls: dict[str, Callable[[], object]] = {"product": lambda: left @ right, "sum": vector.sum}
    seconds = {name: timing["min"] for name, timing in interleave(calls, rounds=7).items()}
    return Speed(2 * side**3 / seconds["product"], vector.nbytes / seconds["sum"])


def measure_products(num_queries: int, num_virtual_tokens: int) -> float:
    """Return the operations a second of the products that such attention consists of, as one batched call each."""
    config, device, dtype = setting()
    heads = _key_value_heads(config)
    group = config.num_attention_heads // heads
    dim = config.hidden_size // config.num_attention_heads
    query = torch.randn(heads, num_queries * group, dim, device=device, dtype=dtype)
    layers = [
        [torch.randn(heads, num_virtual_tokens, dim, device=device, dtype=dtype) for _ in range(2)]
        for _ in range(config.num_hidden_layers)
    ]
    scores, output = query @ layers[0][0].transpose(1, 2), torch.empty_like(query)

    def attend() -> None:
        for key, value in layers:  # one after another, as a model comes to them
            torch.bmm(query, key.transpose(1, 2), out=scores)
            torch.bmm(scores, value, out=output)

    seconds = interleave({"products": attend}, rounds=7)["products"]["median"]
    return 2 * _product(num_queries, num_virtual_tokens) / seconds


def training_floor(speed: Speed, base_s: float, num_queries: int, num_virtual_tokens: int) -> float:
    """Return the least seconds of a training step whose base takes `base_s`; `num_queries` counts rows times tokens."""
    return base_s + (_FORWARD + _BACKWARD) * _product(num_queries, num_virtual_tokens) / speed.flops


def generation_floor(
    speed: Speed, base_s: float, batch: int, num_virtual_tokens: int, prompt: int, num_new: int, num_prefixes: int = 1
) -> float:
    """Return the least seconds of greedy generation: a forward over the prompt, then one a token but for the last."""
    once = num_prefixes * _prefix_bytes(num_virtual_tokens) / speed.bytes

    def step(queries: int) -> float:
        return max(_FORWARD * _product(queries, num_virtual_tokens) / speed.flops, once)

    return base_s + step(batch * prompt) + (num_new - 1) * step(batch)


def _product(num_queries: int, num_virtual_tokens: int) -> float:
    """Return the operations of one product of all queries with a prefix, in all layers."""
    config, _, _ = setting()
    return 2.0 * num_queries * num_virtual_tokens * config.hidden_size * config.num_hidden_layers


def _prefix_bytes(num_virtual_tokens: int) -> int:
    config, _, dtype = setting()
    width = 2 * _key_value_heads(config) * config.hidden_size // config.num_attention_heads
    return num_virtual_tokens * width * config.num_hidden_layers * dtype.itemsize


def _key_value_heads(config: LlamaConfig) -> int:
    return config.num_key_value_heads or config.num_attention_heads
