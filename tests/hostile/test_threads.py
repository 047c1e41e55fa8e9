"""Many threads on one model, each with its own prefix, write what each would write alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch
from torch import Tensor

import antefix
from antefix.initialize import random_prefix
from tests.conftest import build_model, draw_ids

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
