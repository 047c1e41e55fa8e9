"""Lessons from given questions: for plain context distillation, and to measure a prefix by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from antefix.errors import DataError
from antefix.training.distillation.document import as_context
from antefix.training.distillation.lessons import Draft, Lesson
from antefix.training.distillation.teacher import Teacher
from antefix.training.examples import Wording
from antefix.training.room import Room
from antefix.training.rows import Row
from antefix.training.tokens import TextPreprocessor


@dataclass(frozen=True)
class GivenQuestions:
    """Makes lessons of rows by `wording`; the answers are the rows' own if `has_answers`, else the teacher's.

    The teacher has `document` before the question. Its answers end at a line break if `end_with_line`.
    """

    teacher: Teacher
    preprocessor: TextPreprocessor
    wording: Wording
    document: str
    has_answers: bool
    end_with_line: bool

    def fit(self, rows: Sequence[Row], readable: int | None) -> bool:
        """Return whether each question and answer fit behind the document into `readable` tokens; None is no limit.

        Raises `DataError` for a row that cannot be worded.
        """
        return readable is None or all(len(self._context(row)) + self._longest_answer(row) <= readable for row in rows)

    def check_room(self, rows: Sequence[Row], room: Room) -> None:
        """Raise `ContextLengthError` for a question and answer that do not fit behind the prefix.

        Raises `DataError` for a row that cannot be worded or has no tokens.
        """
        for row in rows:
            if not (prompt := self._prompt(row)):
                raise DataError(
                    f"the question of {row[0]} has no tokens, and this base's tokenizer opens none; leave it out."
                )
            room.check(len(prompt), self._longest_answer(row), f"the question of {row[0]} or the prefix")

    def lessons(self, rows: Sequence[Row], seed: int) -> list[Lesson]:
        """Return one lesson per row."""
        prompts = [(self._context(row), self._prompt(row)) for row in rows]
        if self.has_answers:
            answers = [self._answer(row) for row in rows]
        else:
            answers = self.teacher.answer([context for context, _ in prompts], seed, self.end_with_line)
        drafts = [
            Draft(context, prompt, answer, [True] * len(answer))
            for (context, prompt), answer in zip(prompts, answers, strict=True)
        ]
        return self.teacher.lessons(drafts)

    def _context(self, row: Row) -> list[int]:
        """Return the ids of a question as the teacher reads it, after the document."""
        text = as_context(self.document) if self.document else ""
        return self.preprocessor.prompt_ids(self.wording.prompt(row, text))

    def _prompt(self, row: Row) -> list[int]:
        """Return the ids of a question as the student reads it."""
        return self.preprocessor.prompt_ids(self.wording.prompt(row, ""))

    def _longest_answer(self, row: Row) -> int:
        return len(self._answer(row)) if self.has_answers else self.teacher.max_new_tokens

    def _answer(self, row: Row) -> list[int]:
        """Return the ids of a row's own answer, without the end-of-text token if answers end with the line."""
        ids = self.preprocessor.tokenize(self.wording.example(row)).answer
        ends = self.end_with_line and len(ids) > 1 and ids[-1] == self.preprocessor.tokenizer.eos_token_id
        return ids[:-1] if ends else ids
