"""Many threads on one model, each with its own prefix, write what each would write alone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import torch
from torch import Tensor, nn

import antefix
from antefix.initialize import random_prefix
from tests.conftest import build_model, draw_ids, run

NUM_THREADS = 8


def test_threads_generate_as_they_would_alone() -> None:
    model = build_model("llama")
    bank = antefix.attach(model)
    names = [f"p{number}" for number in range(NUM_THREADS)]
    for number, name in enumerate(names):
        torch.manual_seed(number)
        bank.add(name, random_prefix(bank.sites, 2 + number))
    prompt, together = draw_ids(2, 5), Barrier(NUM_THREADS)

    def write(name: str | None) -> Tensor:
        with bank.use(name):
            written = model.generate(prompt, max_new_tokens=16, do_sample=False, eos_token_id=None)
        assert isinstance(written, Tensor)
        return written

    def write_together(name: str) -> list[Tensor]:
        together.wait()
        return [write(name) for _ in range(4)]

    alone = {name: write(name) for name in names}
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = dict(zip(names, pool.map(write_together, names), strict=True))
    assert all(torch.equal(one, alone[name]) for name in names for one in found[name])
    assert len({tuple(written.flatten().tolist()) for written in alone.values()}) == NUM_THREADS
    assert not any(torch.equal(write(None), written) for written in alone.values()), "no thread's prefix stayed on"


class WhileCopied(nn.Identity):
    """Does work in another thread while the module that it lies in is copied, and keeps what came of it."""

    def __init__(self, work: Callable[[], Tensor]) -> None:
        super().__init__()
        self.work = work
        self.results: list[Tensor] = []

    def __deepcopy__(self, memo: Any) -> nn.Module:
        with ThreadPoolExecutor(1) as pool:
            self.results.append(pool.submit(self.work).result())
        return nn.Identity()


def test_a_head_computes_while_another_is_loaded() -> None:
    model = build_model("llama")
    bank = antefix.attach(model)
    bank.add("trained", antefix.PrefixConfig(4, init="random", trainable_modules=["lm_head"]))
    with torch.no_grad():
        bank.modules("trained")[-1].weight.add_(1.0)
    prefix = bank.prefix("trained")
    bank.add("used", prefix)

    def logits() -> Tensor:
        with bank.use("used"):
            return run(model)

    expected = logits()
    model.lm_head.meanwhile = meanwhile = WhileCopied(logits)
    bank.add("loaded", prefix)
    assert len(meanwhile.results) == 1
    assert torch.equal(meanwhile.results[0], expected)
