"""From settings to a base model, a document that it can read, and what it will write about it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import set_seed

from antefix.bank import PrefixBank
from antefix.errors import ConfigError, UnsupportedModelError
from antefix.training.base import attach_writer, load_base
from antefix.training.chats import Chats, in_chats
from antefix.training.distillation.chat import ChatStudy
from antefix.training.distillation.document import Document
from antefix.training.distillation.lessons import Lesson
from antefix.training.distillation.plain import PlainStudy
from antefix.training.distillation.questions import GivenQuestions
from antefix.training.distillation.room import chunk_length, longest_lesson, num_readable, room_to_read
from antefix.training.distillation.settings import Distillation
from antefix.training.distillation.study import ChunkStudy, QuestionStudy, Study
from antefix.training.distillation.teacher import Teacher
from antefix.training.distillation.trainer import Collator, measure
from antefix.training.launch import num_processes
from antefix.training.room import Room
from antefix.training.rows import Row, read_rows
from antefix.training.templates import Template, Templates
from antefix.training.tokens import TextPreprocessor, padding_id

Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Classroom:
    """All that distillation needs; `questions` makes lessons of `eval_data`, where there is some.

    The teacher reads `chunk_length` tokens at once; `fits` says whether the whole document fits before `questions`.
    """

    bank: PrefixBank
    document: Document
    chunk_length: int
    fits: bool
    study: Study
    questions: Callable[[], list[Lesson]] | None
    collate: Collator
    batch_size: int

    def measured(self, prefix: str | None, parts: Mapping[str, Sequence[Lesson]]) -> Scores:
        """Return loss and divergence of the base with a prefix, or without, on each part that has lessons."""
        with self.bank.use(prefix):
            return {
                name: measure(self.bank.model, lessons, self.collate, self.batch_size)
                for name, lessons in parts.items()
                if lessons
            }


def prepare(settings: Distillation) -> Classroom:
    """Load and check everything that settings name; raises `AntefixError` for whatever does not fit."""
    if num_processes() > 1:
        raise ConfigError("a document is distilled by one process; start distill without torchrun.")
    rows, eval_rows = (read_rows(source) if source else [] for source in (settings.data, settings.eval_data))
    set_seed(settings.seed)
    model, preprocessor = load_base(settings.model)
    if preprocessor.is_encoder_decoder:
        raise UnsupportedModelError(f"{type(model).__name__} is an encoder-decoder; distill takes a causal model.")
    document = Document.read(settings.document, preprocessor.tokenizer)
    bank = attach_writer(model)
    config = settings.prefix_config(document.num_tokens, document.text)
    readable, length = num_readable(bank), document.num_tokens
    holds_chats = settings.messages is not None or (not rows and bool(preprocessor.tokenizer.chat_template))
    writer = in_chats(preprocessor) if holds_chats else preprocessor
    teacher = Teacher(bank, writer, settings.num_logits, settings.temperature, settings.max_new_tokens)
    teacher.check_reads(writer.prompt_ids(document.text), readable)
    given = functools.partial(_given, settings, teacher, preprocessor)
    asked = given(document.text, has_answers=False) if rows else None
    if asked is not None:
        if not asked.fit(rows, readable):
            raise ConfigError(
                f"the questions of '{settings.data}' want the whole document before them; its {length:,} tokens, "
                f"question and answer (up to {settings.max_new_tokens:,}) are more than the {readable:,} that this "
                "model reads at once; leave data out, and the base studies it in chunks."
            )
        study: Study = QuestionStudy(asked, rows, length, settings.batch_size, settings.seed)
    else:
        way: Any = ChatStudy if holds_chats else PlainStudy
        lessons = way(teacher, preprocessor, settings.kinds)
        lesson = longest_lesson(settings, lessons.longest_form if holds_chats else 0)
        room = room_to_read(readable, lesson, config.num_virtual_tokens)
        length = chunk_length(settings, document.num_tokens, room, lesson)
        study = ChunkStudy(lessons, document, length, settings.num_lessons, settings.batch_size, settings.seed)
    told = {"distillation": {**settings.as_dict(), "chats": holds_chats}}
    bank.add(settings.name, config, tokenizer=preprocessor.tokenizer, metadata=told)
    behind_prefix = Room(bank, settings.name)
    if asked is not None:
        asked.check_room(rows, behind_prefix)
    questions, fits = None, True
    if eval_rows:
        whole = given(document.text, has_answers=True)
        fits = whole.fit(eval_rows, readable)
        measured_by = whole if fits else given("", has_answers=True)
        measured_by.check_room(eval_rows, behind_prefix)
        questions = functools.partial(_in_batches, measured_by, eval_rows, settings.batch_size)
    collate = Collator(padding_id(preprocessor.tokenizer))
    return Classroom(bank, document, length, fits, study, questions, collate, settings.batch_size)


def _given(
    settings: Distillation, teacher: Teacher, preprocessor: TextPreprocessor, document: str, has_answers: bool
) -> GivenQuestions:
    if settings.messages is not None:
        chats = Chats(settings.messages, preprocessor.tokenizer)
        return GivenQuestions(teacher, in_chats(preprocessor), chats, document, has_answers, end_with_line=False)
    templates = Templates(Template(settings.prompt or ""), Template(settings.answer or "{answer}"))
    return GivenQuestions(teacher, preprocessor, templates, document, has_answers, end_with_line=True)


def _in_batches(given: GivenQuestions, rows: Sequence[Row], batch_size: int) -> list[Lesson]:
    starts = range(0, len(rows), batch_size)
    return [lesson for start in starts for lesson in given.lessons(rows[start : start + batch_size], seed=0)]
