"""The shared operator on a GPU: its kernels are trusted, and a mixed batch equals its rows alone."""

from __future__ import annotations

import logging

import pytest
import torch

import antefix
from antefix.attention.check import computes_right
from antefix.initialize import random_prefix
from tests.parity.families import FAMILIES, draw_ids

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_kernels_are_trusted(dtype: torch.dtype) -> None:
    assert computes_right(torch.device("cuda", 0), dtype)


def test_a_mixed_batch_equals_its_rows(caplog: pytest.LogCaptureFixture) -> None:
    model = FAMILIES["Llama"].build(scale=1.0).to("cuda", torch.bfloat16)
    bank = antefix.attach(model, max_resident_prefixes=2)
    for number in range(3):
        bank.add(f"p{number}", random_prefix(bank.sites, 4 + number))
    ids, choice = draw_ids(4, 7).cuda(), ["p0", None, "p1", "p2"]
    with torch.no_grad(), caplog.at_level(logging.DEBUG, logger="antefix.attention.backend"):
        with bank.use(choice):
            mixed = model(ids).logits
        assert not caplog.messages, "the operator was used"
        for row, name in enumerate(choice):
            with bank.use(name):
                alone = model(ids[row : row + 1]).logits[0]
            torch.testing.assert_close(mixed[row], alone, atol=0.05, rtol=0.05)  # bf16 keeps 8 bits
