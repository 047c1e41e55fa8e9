"""Examples as text, and what makes them from rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from antefix.errors import DataError
from antefix.training.rows import Row


@dataclass(frozen=True)
class Example:
    """One example as text; `completion` is the answer as a chat template writes it, with what ends the turn."""

    prompt: str
    answer: str
    completion: str | None = None


@runtime_checkable
class Wording(Protocol):
    """Makes examples from rows; `context` is a text that comes before everything else in the prompt."""

    def prompt(self, row: Row, context: str = "") -> str:
        """Return the prompt of a row, which need not have an answer."""

    def example(self, row: Row, context: str = "") -> Example:
        """Return prompt and answer of a row."""


def examples_of(rows: Iterable[Row], wording: Wording, context: str = "") -> list[Example]:
    """Return every row as an example."""
    return [wording.example(row, context) for row in rows]


def checked_text(text: str, where: str) -> str:
    """Return a text; raises `DataError` for one that cannot be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} holds half a surrogate pair, which is no text: {text[:60]!r}.") from error
    return text
