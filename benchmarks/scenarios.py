"""What is measured: training steps, generation, mixed batches, switching, each as one call a peer."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Call
from benchmarks.peers import Peers, build, draw_ids

Calls = Mapping[str, Call]
PROMPT = 16


@dataclass(frozen=True)
class Scenario:
    """One piece of work: how its calls are built, what is measured, and the most that antefix may need.

    `target` is in proportion to the bare base, `target_to_peft` in proportion to PEFT, `target_s` in seconds.
    `queries_and_tokens` tells how many queries meet how many tokens of a prefix at a time, where that decides the cost.
    With `keeps_memory` the C library gives no freed memory back, so that no call touches new pages.
    """

    name: str
    build: Callable[[], Calls]
    measure: str = "time"
    target: float | None = None
    target_to_peft: float | None = None
    target_s: float | None = None
    queries_and_tokens: tuple[int, int] | None = None
    keeps_memory: bool = False


def training_step(
    batch: int, length: int, num_virtual_tokens: int, hidden: int | None = None, checkpointing: bool = False
) -> Calls:
    """Forward and backward; the bare base propagates down to its embeddings, as a prefix makes it do."""
    peers = build(num_virtual_tokens, train=True, encoder_hidden_size=hidden)
    ids = draw_ids(batch, length)
    for model in (peers.base, peers.peft, peers.attached):
        model.train()
        if checkpointing and model is not peers.peft:
            model.activation_checkpointing_enable({"use_reentrant": False})

    def bare() -> None:
        embedded = peers.base.get_input_embeddings()(ids).detach().requires_grad_()
        peers.base(inputs_embeds=embedded, labels=ids, use_cache=False).loss.backward()

    def theirs() -> None:
        peers.peft(input_ids=ids, labels=ids).loss.backward()

    def ours() -> None:
        peers.attached(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    return {"base": bare, "antefix": ours, **({} if checkpointing else {"peft": theirs})}


def generation(batch: int, num_virtual_tokens: int, num_new: int = 32) -> Calls:
    """Greedy generation with one prefix for all rows."""
    peers = build(num_virtual_tokens)
    ids = draw_ids(batch, PROMPT)
    models = {"base": peers.base, "peft": peers.peft, "antefix": peers.attached}
    return {name: functools.partial(_generate, model, ids, num_new) for name, model in models.items()}


def mixed_batch(num_prefixes: int, num_virtual_tokens: int, num_new: int = 32, rows: int | None = None) -> Calls:
    """Answer requests for many prefixes: a batch for each prefix with PEFT, one batch of all with antefix."""
    peers = build(num_virtual_tokens, num_prefixes)
    names = [f"p{number % num_prefixes}" for number in range(rows or num_prefixes)]
    ids = draw_ids(len(names), PROMPT)

    def theirs() -> None:
        for number in range(num_prefixes):
            peers.peft.set_adapter(f"p{number}")
            _generate(peers.peft, ids[number::num_prefixes], num_new)

    def ours() -> None:
        with peers.bank.use(names):
            _generate(peers.attached, ids, num_new)

    return {"base": functools.partial(_generate, peers.base, ids, num_new), "peft": theirs, "antefix": ours}


def switching() -> Calls:
    """Make another prefix the active one."""
    peers = build(128, num_prefixes=2)
    theirs, ours = itertools.cycle(("p1", "p0")), itertools.cycle(("p1", "p0"))
    return {
        "peft": lambda: peers.peft.set_adapter(next(theirs)),
        "antefix": lambda: peers.bank.activate(next(ours)),
    }


def prefix_bytes(batch: int, num_virtual_tokens: int) -> dict[str, int]:
    """Return how many bytes of prefix keys and values each peer holds while it generates for a batch."""
    peers: Peers = build(num_virtual_tokens)
    cache = peers.peft.get_prompt(batch_size=batch)
    held = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    prefix = peers.bank.prefix("p0")
    ours = sum(part.nbytes for parts in (prefix.keys, prefix.values) for part in parts.values())
    return {"peft": held, "antefix": ours}


def _generate(model: Any, ids: Tensor, num_new: int) -> Tensor:
    answer: Tensor = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_new, do_sample=False, pad_token_id=0
    )
    return answer


def _step(tokens: int, target: float) -> Scenario:
    return Scenario(
        f"training step, B=8 T=128 P={tokens}",
        functools.partial(training_step, 8, 128, tokens),
        target=target,
        queries_and_tokens=(8 * 128, tokens),
    )


def _generation(batch: int, tokens: int, target: float, to_peft: float | None = None) -> Scenario:
    return Scenario(
        f"generate 32 tokens, B={batch} P={tokens}",
        functools.partial(generation, batch, tokens),
        target=target,
        target_to_peft=to_peft,
        queries_and_tokens=(batch, tokens),
    )


SCENARIOS = (
    _step(16, 1.05),
    _step(128, 1.08),
    _step(512, 1.18),
    Scenario(
        "training step, B=8 T=128 P=512, MLP 512",
        functools.partial(training_step, 8, 128, 512, 512),
        target=1.25,
        queries_and_tokens=(8 * 128, 512),
    ),
    _generation(1, 128, 1.06),
    _generation(8, 128, 1.08),
    _generation(16, 1024, 1.20),
    _generation(16, 4096, 1.5, to_peft=1 / 12),
    Scenario(
        "16 requests over 16 prefixes of P=128, 32 tokens",
        functools.partial(mixed_batch, 16, 128),
        target_to_peft=1 / 8,
    ),
    Scenario("make another prefix active", switching, target_s=1e-3),
    Scenario(
        "peak memory, checkpointed training step, B=1 T=1024 P=128",
        functools.partial(training_step, 1, 1024, 128, None, True),
        measure="memory",
        target=1.05,
    ),
    Scenario(
        "peak memory, training step, B=8 T=128 P=512", functools.partial(training_step, 8, 128, 512), measure="memory"
    ),
    Scenario("peak memory, generate 32 tokens, B=16 P=1024", functools.partial(generation, 16, 1024), measure="memory"),
)

KEEPING_MEMORY = tuple(
    Scenario(f"{name}, freed memory kept", build, queries_and_tokens=shape, keeps_memory=True)
    for name, build, shape in ((one.name, one.build, one.queries_and_tokens) for one in SCENARIOS)
    if name.startswith("generate 32 tokens, B=16")
)
"""Of a CPU alone, and measured last: a GPU's memory is kept anyway."""
