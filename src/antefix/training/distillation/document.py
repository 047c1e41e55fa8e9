"""`Document`: a long text, the chunks of it that a teacher reads, and how much of the text they cover."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from antefix.errors import ConfigError, DataError


@dataclass(frozen=True)
class Chunk:
    """A part of a document: its text, which is that of the document's tokens from `start` to before `end`."""

    text: str
    start: int
    end: int


class Document:
    """A text and where its tokens begin and end; raises `ConfigError` for a tokenizer that does not say where."""

    def __init__(self, text: str, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise ConfigError(f"{type(tokenizer).__name__} does not say where tokens begin; take a fast tokenizer.")
        self.text = text
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        self._spans: list[tuple[int, int]] = encoded["offset_mapping"]
        if not self._spans:
            raise DataError("the document holds no text.")

    @classmethod
    def read(cls, path: str, tokenizer: PreTrainedTokenizerBase) -> Document:
        """Read a text file; raises `DataError` if it cannot be read."""
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"the document '{path}' cannot be read: {reason}.") from error
        return cls(text, tokenizer)

    @property
    def num_tokens(self) -> int:
        """How many tokens the whole text has."""
        return len(self._spans)

    def chunk(self, start: int, end: int) -> Chunk:
        """Return the part from token `start` to before token `end`."""
        return Chunk(self.text[self._spans[start][0] : self._spans[end - 1][1]], start, end)

    def windows(self, rng: random.Random, length: int) -> list[Chunk]:
        """Return chunks of at most `length` tokens that cover the document, in random order.

        Their number is always the same, but where they begin is drawn. A chunk reaches back to the beginning of a line
        if there is one within a quarter of its length, so that it does not begin in the middle of a thought.
        """
        if length >= self.num_tokens:
            return [self.chunk(0, self.num_tokens)]
        back = length // 4
        stride = length - back
        shift = rng.randint(0, stride // 2)
        last = max(self.num_tokens - stride, 0)
        number = -(-(self.num_tokens + stride // 2) // stride)
        starts = [min(max(place * stride - shift, 0), last) for place in range(number)]
        ends = [min(place * stride - shift + stride, self.num_tokens) for place in range(number)]
        chunks = [self.chunk(self._line_start(start, back), end) for start, end in zip(starts, ends, strict=True)]
        return rng.sample(chunks, number)

    def _line_start(self, token: int, most: int) -> int:
        for candidate in range(token, max(token - most, 0) - 1, -1):
            if candidate == 0 or "\n" in self.text[self._spans[candidate - 1][0] : self._spans[candidate][0]]:
                return candidate
        return token


def num_covered(spans: Iterable[tuple[int, int]]) -> int:
    """Return how many tokens lie in any of the spans `(start, end)`."""
    covered, reached = 0, 0
    for start, end in sorted(spans):
        covered += max(end - max(start, reached), 0)
        reached = max(reached, end)
    return covered


def as_context(text: str) -> str:
    """Return a text as it stands before what is written about it, with a blank line in between."""
    return text.strip("\n") + "\n\n"
