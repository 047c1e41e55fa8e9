"""Self-study of a base that goes on from text: it fills in lines that begin with `Question:`, `Note:` and the like."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import zip_longest

from antefix.training.distillation.document import Chunk, before_all
from antefix.training.distillation.lessons import Draft, Lesson
from antefix.training.distillation.seeds import OPENINGS
from antefix.training.distillation.teacher import Teacher
from antefix.training.tokens import ExampleTokenizer


class PlainStudy:
    """Lets the teacher write lines below a chunk; the student has nothing in its place but the opening token."""

    def __init__(self, teacher: Teacher, encoder: ExampleTokenizer, kinds: Sequence[str]) -> None:
        self.teacher = teacher
        self.encoder = encoder
        self.kinds = kinds

    def lessons(self, chunk: Chunk, rng: random.Random, number: int) -> list[Lesson]:
        """Return what came to something of `number` lessons about a chunk."""
        context = self.encoder.prompt_ids(before_all(chunk.text))
        openings = [OPENINGS[rng.choice(self.kinds)] for _ in range(number)]
        drafts = [Draft(context, self.encoder.prompt_ids(""), [], []) for _ in openings]
        with self.teacher.reading(context):
            for stage in zip_longest(*openings):
                going_on = [draft for draft, opening in zip(drafts, stage, strict=True) if opening is not None]
                self._open(going_on, [opening for opening in stage if opening is not None])
                written = self.teacher.write(
                    [draft.continuation for draft in going_on], rng.getrandbits(63), stops_at_line_break=True
                )
                for draft, ids in zip(going_on, written, strict=True):
                    draft.continuation.extend(ids)
                    draft.is_written.extend([True] * len(ids))
            drafts = [draft for draft, opened in zip(drafts, openings, strict=True) if self._is_whole(draft, opened)]
            targets = self.teacher.targets(drafts, len(context)) if drafts else []
        return [Lesson.of(draft, found) for draft, found in zip(drafts, targets, strict=True)]

    def _open(self, drafts: Sequence[Draft], openings: Sequence[str]) -> None:
        for draft, opening in zip(drafts, openings, strict=True):
            ids = self.encoder.tokenizer(opening, add_special_tokens=False)["input_ids"]
            draft.continuation.extend(ids)
            draft.is_written.extend([False] * len(ids))

    def _is_whole(self, draft: Draft, opened: Sequence[str]) -> bool:
        """Tell whether every line was written to its end, with something in it."""
        lines = str(self.encoder.tokenizer.decode(draft.continuation, skip_special_tokens=True)).split("\n")
        lines = lines[: len(opened)]
        return self.teacher.ended(draft.continuation) and all(
            line.startswith(opening) and len(line) > len(opening) + 1
            for line, opening in zip_longest(lines, opened, fillvalue="")
        )
