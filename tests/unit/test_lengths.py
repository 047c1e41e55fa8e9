"""Lengths before training, and what is said of examples that are too long."""

from __future__ import annotations

import pytest

from antefix.errors import DataError
from antefix.training.examples import Example
from antefix.training.lengths import check_length, cut_all, spread, spreads
from antefix.training.tokens import TextPreprocessor, TokenizedExamples, Tokens
from tests.unit.test_tokens import CAUSAL


def part(*sizes: tuple[int, int]) -> TokenizedExamples:
    """Return examples of these numbers of prompt and answer tokens."""
    return TokenizedExamples(
        [Example(f"prompt of {prompt}", "") for prompt, _ in sizes],
        [Tokens([9] * prompt, [8] * answer) for prompt, answer in sizes],
    )


def test_median_most_and_longest() -> None:
    assert spread(range(1, 101)) == {"median": 50, "95%": 95, "longest": 100}
    assert spread([7]) == {"median": 7, "95%": 7, "longest": 7}
    numbers = spreads(CAUSAL, part((3, 2), (6, 5), (9, 9)))
    assert numbers == {"prompt": spread([3, 6, 9]), "answer": spread([2, 5, 9])}
    assert spread([1, 2, 3, 100]) == {"median": 2, "95%": 100, "longest": 100}


def test_too_long_examples_are_refused_with_numbers() -> None:
    parts = [part((3, 2), (6, 5), (9, 9)), part((8, 3))]
    check_length(CAUSAL, parts, 18)
    with pytest.raises(
        DataError, match="3 of 4 examples have more than max_length=10 tokens, the longest 18, the first"
    ):
        check_length(CAUSAL, parts, 10)
    with pytest.raises(DataError, match="the first 'prompt of 6'; raise max_length or set truncation"):
        check_length(CAUSAL, parts, 10)


def test_cut_examples_are_announced_with_numbers() -> None:
    parts = [part((3, 2), (6, 5), (9, 9)), part((8, 3), (1, 20))]
    (trained, held_out), sentence = cut_all(CAUSAL, parts, 10)
    sizes = [(len(tokens.prompt), len(tokens.answer)) for cut in (trained, held_out) for tokens in cut.tokens]
    assert sizes == [(3, 2), (5, 5), (1, 9), (7, 3), (1, 9)]
    assert trained.examples == parts[0].examples
    assert sentence == (
        "4 of 5 examples have more than 10 tokens and were cut: 10 tokens of prompts are lost, in 3 of them, and "
        "11 of answers, in 1."
    )
    assert cut_all(CAUSAL, parts, 100)[1] is None
    assert isinstance(CAUSAL, TextPreprocessor)
