"""Lessons from questions that are given: plain context distillation, and what a prefix is measured by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from antefix.training.distillation.document import before_all
from antefix.training.distillation.lessons import Draft, Lesson
from antefix.training.distillation.teacher import Teacher
from antefix.training.examples import Wording
from antefix.training.rows import Row
from antefix.training.tokens import ExampleTokenizer


@dataclass(frozen=True)
class GivenQuestions:
    """Questions as rows, worded; the answers are the rows' own where `has_answers`, else the teacher's.

    The teacher answers with `document` before the question. Answers that it writes end with the line, unless a chat
    template words the questions.
    """

    teacher: Teacher
    encoder: ExampleTokenizer
    wording: Wording
    document: str
    has_answers: bool
    end_with_line: bool

    def lessons(self, rows: Sequence[Row], seed: int) -> list[Lesson]:
        """Return one lesson for each of some rows."""
        text = before_all(self.document) if self.document else ""
        contexts = [self.encoder.prompt_ids(self.wording.prompt(row, text)) for row in rows]
        prompts = [self.encoder.prompt_ids(self.wording.prompt(row)) for row in rows]
        if self.has_answers:
            answers = [self._answer(row) for row in rows]
        else:
            answers = self.teacher.answer(contexts, seed, self.end_with_line)
        parts = zip(contexts, prompts, answers, strict=True)
        drafts = [Draft(context, prompt, answer, [True] * len(answer)) for context, prompt, answer in parts]
        return self.teacher.lessons(drafts)

    def _answer(self, row: Row) -> list[int]:
        """Return the ids of a row's own answer, without an end-of-text token where the teacher would end the line."""
        ids = self.encoder.tokenize(self.wording.example(row)).answer
        ends = self.end_with_line and len(ids) > 1 and ids[-1] == self.encoder.tokenizer.eos_token_id
        return ids[:-1] if ends else ids
