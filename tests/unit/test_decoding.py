"""The kernel that decodes equals softmax in float64: compiled where there is a GPU, else read by an interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from antefix.attention.check import HeadShape, computes_right
from antefix.attention.decoding import can_decode, decode
from antefix.attention.kernels import kernel_mask
from antefix.attention.shared import shared_attention
from tests.parity.written_out import HEADS, SCALE, assert_near, by_hand, draw_case, pairs

pytest.importorskip("triton", reason="Triton has no package for this system")

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
# Of the largest number: fp32 sums in another order, bf16 keeps 8 bits and fp16 11.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3}
if DEVICE.type == "cuda":  # the interpreter multiplies the bits of bf16 as if they were whole numbers
    TOLERANCE[torch.bfloat16] = 3e-2


@pytest.mark.parametrize(
    ("dims", "tokens"),
    [
        ((8, 6), 1),
        ((8, 6), 1100),
        ((64, 64), 511),
        ((64, 64), 512),
        ((40, 72), 600),
        ((256, 256), 1),
        ((256, 256), 130),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equals_softmax_written_out(dtype: torch.dtype, is_masked: bool, dims: tuple[int, int], tokens: int) -> None:
    """One query a row, by the kernel and by the operator, before prefixes of any length, one of 2 tokens beside."""
    drawn, _ = draw_case(1, 70, *dims)
    drawn[0] = drawn[0] * (8 / dims[0]) ** 0.5  # scores of wide heads as large as those of narrow ones
    prefixes = [torch.randn(2, length, dim, dtype=torch.float64) for length in (tokens, 2) for dim in dims]
    exact = [part.detach().to(dtype).double() for part in (*drawn, *prefixes)]
    ours = [part.to(DEVICE, dtype) for part in exact]
    mask = hidden = None
    if is_masked:
        seen = torch.rand(3, 1, 1, 70) < 0.5
        mask = kernel_mask(seen.to(DEVICE), dtype)
        hidden = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, float("-inf"))
    for rows in ([0, 0, 0], [0, -1, 1], [1, 0, 1]):
        expected = by_hand(*exact[:3], pairs(exact[3:]), rows, hidden, False)
        with torch.no_grad():
            assert can_decode(*ours[:3], mask, pairs(ours[3:]))
            at_once = decode(*ours[:3], pairs(ours[3:]), rows, mask, SCALE)
            in_parts = shared_attention(*ours[:3], pairs(ours[3:])[: max(rows) + 1], rows, mask, False, SCALE)
        assert_near(at_once, expected, TOLERANCE[dtype])
        assert_near(in_parts, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_heads_of_any_shape(dtype: torch.dtype, heads: HeadShape) -> None:
    assert all(computes_right("decoding", DEVICE, dtype, heads, is_masked) for is_masked in (False, True))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_prefix_may_begin_anywhere_in_memory(dtype: torch.dtype) -> None:
    """An address that is no multiple of 16 bytes is read by smaller pieces."""
    drawn, _ = draw_case(1, 70, 64, 64)
    exact = [part.detach().to(dtype).double() for part in drawn]
    prefix = torch.randn(2, 2 * 300 * 64 + 1).to(dtype)
    exact_pair = (prefix[0, 1:].view(2, 300, 64).double(), prefix[1, 1:].view(2, 300, 64).double())
    on_device = prefix.to(DEVICE)
    pair = (on_device[0, 1:].view(2, 300, 64), on_device[1, 1:].view(2, 300, 64))
    expected = by_hand(*exact, [exact_pair], [0, -1, 0], None, False)
    with torch.no_grad():
        actual = decode(*(part.to(DEVICE, dtype) for part in exact), [pair], [0, -1, 0], None, SCALE)
    assert_near(actual, expected, TOLERANCE[dtype])


def test_keys_may_be_part_of_a_longer_cache() -> None:
    """What lies behind them in memory, as in a static cache, is not read."""
    drawn, _ = draw_case(1, 70, 16, 16)
    query, *cache = (part.detach().to(DEVICE, torch.float32) for part in drawn)
    cache = [torch.cat([part, torch.full_like(part, float("nan"))], 2)[:, :, :70] for part in cache]
    prefixes = [(torch.randn(2, 9, 16, dtype=torch.float64), torch.randn(2, 9, 16, dtype=torch.float64))]
    expected = by_hand(*(part.detach() for part in drawn), prefixes, [0, 0, -1], None, False)
    in_memory = [(keys.to(DEVICE, torch.float32), values.to(DEVICE, torch.float32)) for keys, values in prefixes]
    with torch.no_grad():
        actual = decode(query, *cache, in_memory, [0, 0, -1], None, SCALE)
    assert_near(actual, expected, TOLERANCE[torch.float32])


def test_compiles_without_a_gpu() -> None:
    """As it is, for an H100 and its like; in a process of its own, as this one may have been told to interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.unit.compile_decoding"]
    run = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) <= 227 * 1024  # the shared memory that a program has there, in bytes
