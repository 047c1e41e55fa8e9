"""How long examples are, and what becomes of those that are too long."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from antefix.errors import DataError
from antefix.training.tokens import Preprocessor, TokenizedExamples, Tokens


def spread(lengths: Sequence[int]) -> dict[str, int]:
    """Return the median, the 95th percentile, and the longest."""
    median, most = np.percentile(lengths, [50, 95], method="inverted_cdf")
    return {"median": int(median), "95%": int(most), "longest": max(lengths)}


def spreads(preprocessor: Preprocessor, part: TokenizedExamples) -> dict[str, dict[str, int]]:
    """Return the spread of the lengths, in tokens, of each text that examples are made of, such as the prompt."""
    lengths = [preprocessor.lengths(tokens) for tokens in part.tokens]
    return {name: spread([one[name] for one in lengths]) for name in lengths[0]}


def check_length(preprocessor: Preprocessor, parts: Sequence[TokenizedExamples], max_length: int) -> None:
    """Raise `DataError` if examples are longer than `max_length` tokens."""
    lengths = [preprocessor.length(tokens) for part in parts for tokens in part.tokens]
    long = [number for number, length in enumerate(lengths) if length > max_length]
    if long:
        examples = [example for part in parts for example in part.examples]
        raise DataError(
            f"{len(long):,} of {len(lengths):,} examples have more than max_length={max_length} tokens, the longest "
            f"{max(lengths):,}, the first {examples[long[0]].prompt[:60]!r}; raise max_length or set "
            "truncation."
        )


def cut_all(
    preprocessor: Preprocessor, parts: Sequence[TokenizedExamples], max_length: int
) -> tuple[list[TokenizedExamples], str | None]:
    """Cut examples to `max_length` tokens; return them, and a sentence about what was lost if any was longer."""
    cut = [
        TokenizedExamples(part.examples, [preprocessor.cut(tokens, max_length) for tokens in part.tokens])
        for part in parts
    ]
    pairs = [
        (whole, left) for a, b in zip(parts, cut, strict=True) for whole, left in zip(a.tokens, b.tokens, strict=True)
    ]
    prompts = [len(whole.prompt) - len(left.prompt) for whole, left in pairs]
    answers = [len(whole.answer) - len(left.answer) for whole, left in pairs]
    num_cut = sum(prompt + answer > 0 for prompt, answer in zip(prompts, answers, strict=True))
    if not num_cut:
        return cut, None
    return cut, (
        f"{num_cut:,} of {len(pairs):,} examples have more than {max_length:,} tokens and were cut: {sum(prompts):,} "
        f"tokens of prompts are lost, in {np.count_nonzero(prompts):,} of them, and {sum(answers):,} of answers, in "
        f"{np.count_nonzero(answers):,}."
    )


def cut_prompts(preprocessor: Preprocessor, part: TokenizedExamples, max_length: int) -> TokenizedExamples:
    """Cut prompts until the longest answer fits behind each, as an answer that is generated may be as long."""
    longest = max((tokens.answer for tokens in part.tokens), key=len)
    cut = (preprocessor.cut(Tokens(tokens.prompt, longest), max_length).prompt for tokens in part.tokens)
    return TokenizedExamples(
        part.examples, [Tokens(prompt, tokens.answer) for prompt, tokens in zip(cut, part.tokens, strict=True)]
    )
