"""The shared operator equals softmax written out in float64, forward and backward, and copies no prefix."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import antefix
from antefix.attention import shared
from antefix.attention.choice import obstacle_to_sharing, share
from antefix.attention.masks import prepend_to_mask
from antefix.attention.shared import shared_attention
from tests.parity.compare import assert_close, logits, with_prefix
from tests.parity.families import FAMILIES, draw_ids
from tests.parity.written_out import ROWS, SCALE, by_hand, draw, draw_case


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("dims", [(8, 8), (8, 6), (6, 8)], ids=str)
@pytest.mark.parametrize("kind", ["causal", "full", "masked", "one query"])
def test_equals_softmax_written_out(rows: list[int], dims: tuple[int, int], kind: str) -> None:
    tensors, prefixes = draw_case(1 if kind == "one query" else 5, 5, *dims)
    mask = None
    if kind == "masked":  # the first two keys are padding, and the queries there see no token of their row at all
        mask = torch.zeros(3, 1, 5, 5, dtype=torch.float64)
        mask[..., :2] = torch.finfo(torch.float64).min
        if -1 in rows:  # a row without a prefix must see something, or softmax is not defined
            mask[rows.index(-1), 0, :, 0] = 0.0
    expected = by_hand(*tensors, prefixes, rows, mask, kind == "causal")
    inputs = [*tensors, *(part for pair in prefixes for part in pair)]
    actual = shared_attention(*tensors, prefixes, rows, mask, kind == "causal", SCALE)
    used = max(rows) + 1
    with torch.no_grad():
        inference = shared_attention(*tensors, prefixes[:used], rows, mask, kind == "causal", SCALE)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(actual, expected, atol=1e-13, rtol=0)
    torch.testing.assert_close(inference, expected, atol=1e-13, rtol=0)
    theirs = torch.autograd.grad(expected, inputs, grad, allow_unused=True, materialize_grads=True)
    for ours, exact in zip(torch.autograd.grad(actual, inputs, grad), theirs, strict=True):
        torch.testing.assert_close(ours, exact, atol=1e-12, rtol=0)


@pytest.mark.parametrize("tokens", [1, 511, 512, 600])
def test_a_decoding_step_before_a_prefix_of_any_length(tokens: int) -> None:
    """Long prefixes are met by all heads of a group at once, shorter ones are not."""
    tensors, _ = draw_case(queries=1)
    prefixes = [(draw(2, tokens, 8), draw(2, tokens, 8))]
    for rows in ([0, 0, 0], [0, -1, 0]):
        expected = by_hand(*tensors, prefixes, rows, None, False)
        actual = shared_attention(*tensors, prefixes, rows, None, False, SCALE)
        torch.testing.assert_close(actual, expected, atol=1e-13, rtol=0)
        inputs = [*tensors, *prefixes[0]]
        for ours, exact in zip(
            torch.autograd.grad(actual.square().sum(), inputs), torch.autograd.grad(expected.square().sum(), inputs),
            strict=True,
        ):  # fmt: skip
            torch.testing.assert_close(ours, exact, atol=1e-12, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [[0, 0, 0], [1, -1, 0]], ids=str)
def test_the_operator_is_well_behaved(rows: list[int]) -> None:
    (query, key, value), prefixes = draw_case()
    keys, values = ([pair[part] for pair in prefixes] for part in (0, 1))
    torch.library.opcheck(shared._operator, (query, key, value, keys, values, rows, None, True, SCALE))

    def attend(*tensors: Tensor) -> Tensor:
        pairs = [(tensors[3], tensors[4]), (tensors[5], tensors[6])]
        return shared_attention(*tensors[:3], pairs, rows, None, True, SCALE)

    assert torch.autograd.gradcheck(attend, (query, key, value, keys[0], values[0], keys[1], values[1]))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_dtypes(dtype: torch.dtype, tolerance: float) -> None:
    # A few units in the last place of numbers near 1: 2**-23, 2**-8 and 2**-11.
    tensors, prefixes = draw_case(dtype=dtype)
    exact, exact_prefixes = [t.double() for t in tensors], [(k.double(), v.double()) for k, v in prefixes]
    expected = by_hand(*exact, exact_prefixes, [0, 1, -1], None, True)
    actual = shared_attention(*tensors, prefixes, [0, 1, -1], None, True, SCALE)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_few_tokens_beside_a_long_prefix_keep_their_weight(dtype: torch.dtype) -> None:
    """Beside 2,000 tokens whose values are 0, the output is the weight of the row's own 5, to 1 in 100."""
    (query, key, _), _ = draw_case(dtype=dtype)
    value, prefix_value = torch.ones(3, 2, 5, 8, dtype=dtype), torch.zeros(2, 2000, 8, dtype=dtype)
    prefix = (draw(2, 2000, 8, dtype=dtype), prefix_value)
    exact = [part.double() for part in (query, key, value)], [tuple(part.double() for part in prefix)]
    expected = by_hand(*exact[0], exact[1], [0, 0, 0], None, True)
    with torch.no_grad():
        actual = shared_attention(query, key, value, [prefix], [0, 0, 0], None, True, SCALE)
    assert ((actual.double() - expected).abs() / expected).max() < 0.01


def test_a_prefix_is_never_copied() -> None:
    """What reaches the operator is the memory of the prefix itself, however many rows use it."""
    family = FAMILIES["Llama"]
    model, bank = with_prefix(family)
    bank.add("fixed", bank.prefix("p"))
    held = bank._entries["fixed"].data
    seen: list[int] = []
    original = shared._attend

    def spy(query: Tensor, key: Tensor, value: Tensor, keys: Sequence[Tensor], *rest: object) -> tuple[Tensor, ...]:
        seen.extend(part.data_ptr() for part in keys)
        return original(query, key, value, keys, *rest)  # type: ignore[arg-type]

    shared._attend = spy
    try:
        with bank.use("fixed"):
            logits(model, input_ids=draw_ids(16, 7))
    finally:
        shared._attend = original
    assert isinstance(held, antefix.Prefix)
    assert seen == [key.data_ptr() for key in held.keys.values()]


@pytest.mark.parametrize(
    ("name", "implementation", "reason"),
    [
        ("Llama", "sdpa", None),
        ("DeepSeek-V3", "sdpa", None),
        ("BART", "sdpa", None),
        ("Llama", "eager", "the attention is not Transformers' sdpa"),
        ("T5", "sdpa", "the model adds a bias by distance"),
    ],
)
def test_the_choice_is_explained(
    name: str, implementation: str, reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    family = FAMILIES[name]
    model, _ = with_prefix(family, attn_implementation=implementation)
    with caplog.at_level(logging.DEBUG, logger="antefix.attention.backend"):
        logits(model, **family.draw_inputs())
    assert (reason is None) == (not caplog.messages)
    assert all(reason and reason in message for message in caplog.messages)


def test_obstacles() -> None:
    """Each of them is found, and there is none where nothing stands in the way."""
    tensor = torch.zeros(2, 4, 5, 8)
    call = {"query": tensor, "key": tensor, "value": tensor, "mask": None}
    assert obstacle_to_sharing(sdpa_attention_forward, **call, dropout=0.0, scaling=None, is_causal=True) is None
    assert obstacle_to_sharing(lambda *_: (tensor, None), **call) == "the attention is not Transformers' sdpa"
    for changed, reason in (
        ({"query": tensor.to("meta")}, "there is no kernel for a device of type 'meta'"),
        ({"position_bias": tensor}, "the model adds a bias by distance"),
        ({"dropout": 0.1}, "the model drops attention weights"),
        ({"mask": torch.zeros(2, 1, 5, 5, requires_grad=True)}, "the mask is learned"),
        ({"value": tensor.double()}, "queries, keys and values are of different dtypes"),
        ({"query": tensor[:1]}, "queries and keys are of different batches"),
    ):
        assert obstacle_to_sharing(sdpa_attention_forward, **call | changed) == reason
    unnamed = obstacle_to_sharing(sdpa_attention_forward, tensor, tensor, tensor, None, 0.5)
    assert unnamed == "the model gives its attention arguments without names"


def test_a_cache_has_room_for_more_keys_than_there_are() -> None:
    """Causal attention of 5 queries to 9 keys sees the first 5, as the base's does: no others are there yet."""
    (query, key, value), prefixes = draw_case(queries=5, keys=9)
    seen = torch.ones(5, 9, dtype=torch.bool).tril()
    mask = torch.zeros(3, 1, 5, 9, dtype=torch.float64).masked_fill(~seen, float("-inf"))
    expected = by_hand(query, key, value, prefixes, [0, 1, -1], mask, False)
    actual = share(torch.nn.Module(), query, key, value, None, prefixes, [0, 1, -1], scaling=SCALE)
    torch.testing.assert_close(actual.transpose(1, 2), expected, atol=1e-13, rtol=0)
    repeated = [part.repeat_interleave(2, 1) for part in (key, value)]
    base = torch.nn.functional.scaled_dot_product_attention(query, *repeated, is_causal=True, scale=SCALE)
    torch.testing.assert_close(actual[2], base[2].transpose(0, 1), atol=1e-13, rtol=0)


@pytest.mark.parametrize("hide", ["boolean", "infinite", "lowest"])
def test_a_query_that_sees_no_key_of_its_own_sees_the_prefix(hide: str) -> None:
    """Whatever a mask hides keys by: a query of the padding on the left has the prefix and nothing else."""
    (query, key, value), prefixes = draw_case()
    seen = torch.ones(3, 1, 5, 5, dtype=torch.bool).tril()
    seen[..., :2] = False
    values = {"infinite": float("-inf"), "lowest": torch.finfo(torch.float64).min}
    mask = seen if hide == "boolean" else torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, values[hide])
    added = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, float("-inf"))
    expected = by_hand(query, key, value, prefixes, [0, 1, 0], added, False)
    actual = share(torch.nn.Module(), query, key, value, mask, prefixes, [0, 1, 0], scaling=SCALE)
    torch.testing.assert_close(actual.transpose(1, 2), expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_mask_of_one_column_holds_for_every_key(batch: int) -> None:
    tensors, prefixes = draw_case(queries=1)
    mask = torch.zeros(batch, 1, 1, 1, dtype=torch.float64)
    mask[0] = -3.0
    rows = [0, 1, -1]
    query, key, value = tensors
    whole = share(torch.nn.Module(), query, key, value, mask.expand(-1, -1, -1, 5), prefixes, rows, scaling=SCALE)
    actual = share(torch.nn.Module(), query, key, value, mask, prefixes, rows, scaling=SCALE)
    torch.testing.assert_close(actual, whole, atol=1e-13, rtol=0)
    joined = prepend_to_mask(mask, query, key, 2, None, False, True)
    assert torch.equal(joined, torch.nn.functional.pad(mask.expand(-1, -1, -1, 5), (2, 0)))


def test_hundreds_of_prefixes() -> None:
    """Each row of a large batch equals that row alone."""
    family = FAMILIES["Llama"]
    model, bank = with_prefix(family)
    for number in range(200):
        bank.add(f"{number}", antefix.initialize.random_prefix(bank.sites, 1 + number % 7))
    ids = draw_ids(40, 6)
    choice = [None if row % 9 == 8 else str(row * 7 % 200) for row in range(40)]
    with bank.use(choice):
        mixed = logits(model, input_ids=ids)
    for row in range(0, 40, 3):
        with bank.use(choice[row]):
            assert_close(mixed[row], logits(model, input_ids=ids[row : row + 1])[0])
