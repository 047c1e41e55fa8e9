"""Lessons: what a teacher wrote about a part of the document, how likely each token was, and files of lessons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from antefix.errors import DataError
from antefix.storage import write_atomically
from antefix.training.distillation.targets import Targets


@dataclass(frozen=True)
class Draft:
    """A text as a teacher writes it, in token ids: after `context`, in place of which the student has `prompt`.

    Both go on with `continuation`; `is_written` tells which of its tokens the teacher wrote.
    """

    context: list[int]
    prompt: list[int]
    continuation: list[int]
    is_written: list[bool]


@dataclass(frozen=True, eq=False)
class Lesson:
    """A text to learn from: token ids, which of them the teacher wrote, and the teacher's targets for those."""

    ids: list[int]
    is_written: list[bool]
    targets: Targets

    @classmethod
    def of(cls, draft: Draft, targets: Targets) -> Lesson:
        """Return a draft as the student sees it."""
        return cls(draft.prompt + draft.continuation, [False] * len(draft.prompt) + draft.is_written, targets)


@dataclass(frozen=True, eq=False)
class Round:
    """Lessons about one chunk, tokens `start` to before `end` of the document, and how many could not be used."""

    start: int
    end: int
    lessons: Sequence[Lesson]
    num_discarded: int = 0

    def save(self, path: Path) -> None:
        """Write a round to a safetensors file, whole or not at all."""
        ids = [torch.tensor(lesson.ids, dtype=torch.int32) for lesson in self.lessons]
        written = [torch.tensor(lesson.is_written) for lesson in self.lessons]
        tensors: dict[str, Tensor] = {
            "span": torch.tensor([self.start, self.end, self.num_discarded]),
            "lengths": torch.tensor([len(lesson.ids) for lesson in self.lessons]),
        }
        if self.lessons:
            targets = Targets.joined([lesson.targets for lesson in self.lessons])
            tensors |= {"tokens": torch.cat(ids), "is_written": torch.cat(written)}
            tensors |= {f"targets.{name}": part.contiguous() for name, part in vars(targets).items()}
        write_atomically(path, save(tensors))

    @classmethod
    def load(cls, path: Path) -> Round:
        """Read a round; raises `DataError` for a file that is not an intact one."""
        try:
            tensors = load_file(path)
            start, end, num_discarded = tensors["span"].tolist()
            lengths = tensors["lengths"].tolist()
            if not lengths:
                return cls(start, end, (), num_discarded)
            written = tensors["is_written"].split(lengths)
            targets = Targets(**{part.name: tensors[f"targets.{part.name}"] for part in fields(Targets)})
            parts = zip(
                tensors["tokens"].split(lengths),
                written,
                targets.split([int(part.sum()) for part in written]),
                strict=True,
            )
            lessons = [Lesson(ids.tolist(), flags.tolist(), found) for ids, flags, found in parts]
            return cls(start, end, lessons, num_discarded)
        except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
            raise DataError(
                f"'{path}' is no intact file of lessons ({error}); remove it to have it made anew."
            ) from error
