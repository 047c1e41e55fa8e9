"""Self-study of a base that holds conversations: it asks itself about a chunk, and answers with the chunk before it."""

from __future__ import annotations

import random
from collections.abc import Sequence

from antefix.training.chats import Chats, in_chats
from antefix.training.distillation.document import Chunk, as_context
from antefix.training.distillation.lessons import Draft, Lesson
from antefix.training.distillation.seeds import INSTRUCTIONS
from antefix.training.distillation.teacher import Teacher
from antefix.training.tokens import TextPreprocessor


class ChatStudy:
    """Has the teacher write a user's message about a chunk, then the answer; the student sees the message only."""

    def __init__(self, teacher: Teacher, preprocessor: TextPreprocessor, kinds: Sequence[str]) -> None:
        self.teacher = teacher
        self.preprocessor = in_chats(preprocessor)
        self.chats = Chats("messages", preprocessor.tokenizer)
        self.kinds = kinds

    @property
    def longest_form(self) -> int:
        """How many tokens stand beside a chunk at most: an instruction and whatever the chat template writes."""
        return max(len(self._ids(as_context("") + INSTRUCTIONS[kind])) for kind in self.kinds)

    def lessons(self, chunk: Chunk, rng: random.Random, number: int) -> list[Lesson]:
        """Return the usable ones of `number` lessons about a chunk."""
        text = as_context(chunk.text)
        asking = [self._ids(text + INSTRUCTIONS[rng.choice(self.kinds)]) for _ in range(number)]
        asked = self.teacher.answer(asking, rng.getrandbits(63), stops_at_line_break=False)
        whole = [ids for ids in asked if self.teacher.ended(ids, stops_at_line_break=False)]
        messages = [message for ids in whole if (message := self._text(ids))]
        if not messages:
            return []
        contexts = [self._ids(text + message) for message in messages]
        answers = self.teacher.answer(contexts, rng.getrandbits(63), stops_at_line_break=False)
        drafts = [
            Draft(context, self._ids(message), answer, [True] * len(answer))
            for context, message, answer in zip(contexts, messages, answers, strict=True)
        ]
        return self.teacher.lessons(drafts)

    def _ids(self, message: str) -> list[int]:
        return self.preprocessor.prompt_ids(self.chats.ask(message))

    def _text(self, ids: list[int]) -> str:
        return self.preprocessor.text(ids).strip()
