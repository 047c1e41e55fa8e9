"""`Study`: the rounds in which a base studies a document, each kept in a file as soon as it is finished."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from antefix.training.distillation.document import Chunk, Document
from antefix.training.distillation.lessons import Lesson, Round
from antefix.training.distillation.questions import GivenQuestions
from antefix.training.room import Room
from antefix.training.rows import Row


@runtime_checkable
class SelfStudy(Protocol):
    """A way in which a base writes lessons for itself."""

    def lessons(self, chunk: Chunk, rng: random.Random, number: int) -> list[Lesson]:
        """Return the usable ones of `number` lessons about a chunk."""


@runtime_checkable
class Study(Protocol):
    """Rounds of lessons; a round has the same lessons whenever it is asked for."""

    @property
    def chunk_length(self) -> int:
        """How many tokens of the document the teacher reads at once."""

    @property
    def num_rounds(self) -> int:
        """How many rounds there are."""

    def check_room(self, room: Room) -> None:
        """Raise `ContextLengthError` if the lessons leave no room for the prefix."""

    def round(self, number: int) -> Round:
        """Return the lessons of a round."""


@dataclass(frozen=True)
class ChunkStudy:
    """In each round, a base writes lessons for itself about the next chunk of the document, over and over."""

    self_study: SelfStudy
    document: Document
    chunk_length: int
    num_lessons: int
    batch_size: int
    seed: int

    @property
    def num_rounds(self) -> int:
        """As many as it takes for all lessons."""
        return -(-self.num_lessons // self.batch_size)

    def check_room(self, room: Room) -> None:
        """Do nothing: the chunks are as short as the prefix and the longest lesson need them to be."""

    def round(self, number: int) -> Round:
        """Return the lessons about one chunk."""
        num_windows = len(self._windows(0))
        chunk = self._windows(number // num_windows)[number % num_windows]
        rng = random.Random(f"{self.seed} {number}")
        wanted = min(self.batch_size, self.num_lessons - number * self.batch_size)
        lessons = self.self_study.lessons(chunk, rng, wanted)
        return Round(chunk.start, chunk.end, lessons, wanted - len(lessons))

    def _windows(self, reading: int) -> list[Chunk]:
        """Return the chunks of one reading of the document; each reading has different ones."""
        return self.document.windows(random.Random(f"{self.seed} windows {reading}"), self.chunk_length)


@dataclass(frozen=True)
class QuestionStudy:
    """In each round, the next of the given questions are answered, from all of the document at once."""

    questions: GivenQuestions
    rows: Sequence[Row]
    chunk_length: int
    batch_size: int
    seed: int

    @property
    def num_rounds(self) -> int:
        """As many as it takes for all questions."""
        return -(-len(self.rows) // self.batch_size)

    def check_room(self, room: Room) -> None:
        """Raise `ContextLengthError` for a question that does not fit behind the prefix."""
        self.questions.check_room(self.rows, room)

    def round(self, number: int) -> Round:
        """Return the lessons of one batch of questions."""
        rows = self.rows[number * self.batch_size : (number + 1) * self.batch_size]
        seed = random.Random(f"{self.seed} {number}").getrandbits(63)
        return Round(0, self.chunk_length, self.questions.lessons(rows, seed))


def rounds(study: Study, folder: Path) -> Iterator[Round]:
    """Yield every round: read from its file in a folder if it is there, else made now and written there."""
    for number in range(study.num_rounds):
        path = folder / f"{number:05}.safetensors"
        if path.is_file():
            yield Round.load(path)
            continue
        made = study.round(number)
        made.save(path)
        yield made
