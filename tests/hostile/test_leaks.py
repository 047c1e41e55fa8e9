"""What is attached, added, removed and detached a thousand times leaves nothing behind."""

from __future__ import annotations

import gc
import resource
from pathlib import Path

import torch
from transformers import PreTrainedModel

import antefix
from antefix.initialize import random_prefix
from antefix.prefix import Prefix
from tests.conftest import build_model, draw_ids

NUM_ROUNDS = 1000


def _round(model: PreTrainedModel, prefix: Prefix) -> None:
    bank = antefix.attach(model)
    bank.add("data", prefix)
    bank.add("trained", antefix.PrefixConfig(2, init="random"))
    with bank.use(["data", "trained"]), torch.no_grad():
        model(draw_ids(2, 3))
    bank.remove("data")
    bank.remove("trained")
    bank.detach()


def _held(model: PreTrainedModel, prefix: Prefix, rounds: int) -> tuple[int, int, int]:
    """Return how many objects there are after so many rounds, how many of them are tensors, and the bytes in memory."""
    for _ in range(rounds):
        _round(model, prefix)
    gc.collect()
    objects = gc.get_objects()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return len(objects), sum(issubclass(type(one), torch.Tensor) for one in objects), pages * resource.getpagesize()


def test_a_thousand_rounds_leave_memory_flat() -> None:
    model = build_model("llama")
    prefix = random_prefix(antefix.discover_sites(model), 64)
    before = _held(model, prefix, 100)
    after = _held(model, prefix, NUM_ROUNDS)
    more_objects, more_tensors, more_bytes = (now - then for now, then in zip(after, before, strict=True))
    assert more_tensors == 0
    assert more_objects < NUM_ROUNDS / 10, "nothing is left behind a round"
    # The allocator's own to and fro; the keys and values of each round, kept, would be ten times as much.
    assert more_bytes < 2 * 2**20
