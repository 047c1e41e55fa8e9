"""From settings to a base model, a document that it can read, and the study in which it writes lessons about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import set_seed

from antefix.bank import PrefixBank
from antefix.config import PrefixConfig
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
class EvalQuestions:
    """The questions of `eval_data`; `fits` tells if the teacher reads the whole document before each, or none of it."""

    rows: Sequence[Row]
    questions: GivenQuestions
    fits: bool
    batch_size: int

    def lessons(self) -> list[Lesson]:
        """Return one lesson for each question, whose answer is the row's own."""
        batches = [self.rows[start : start + self.batch_size] for start in range(0, len(self.rows), self.batch_size)]
        return [lesson for batch in batches for lesson in self.questions.lessons(batch, seed=0)]


@dataclass(frozen=True)
class Classroom:
    """All that distillation needs."""

    bank: PrefixBank
    document: Document
    study: Study
    eval_questions: EvalQuestions | None
    collate: Collator
    batch_size: int

    @property
    def fits(self) -> bool:
        """Whether the whole document fits before the questions to measure by, if there are any."""
        return self.eval_questions is None or self.eval_questions.fits

    def measured(self, prefix: str | None, parts: Mapping[str, Sequence[Lesson]]) -> Scores:
        """Return loss and divergence of the base with a prefix, or without, on each part that has lessons."""
        with self.bank.use(prefix):
            return {
                name: measure(self.bank.model, lessons, self.collate, self.batch_size)
                for name, lessons in parts.items()
                if lessons
            }


@dataclass(frozen=True)
class _Base:
    """A base model that is to teach a document; it reads `readable` tokens at once, None for any number.

    `config` says how the prefix is made, `holds_chats` whether the base studies in conversations.
    """

    settings: Distillation
    bank: PrefixBank
    preprocessor: TextPreprocessor
    document: Document
    config: PrefixConfig
    readable: int | None
    holds_chats: bool
    teacher: Teacher


def prepare(settings: Distillation) -> Classroom:
    """Load and check everything that settings name; raises `AntefixError` for whatever does not fit."""
    if num_processes() > 1:
        raise ConfigError("a document is distilled by one process; start distill without torchrun.")
    rows, eval_rows = (read_rows(source) if source else [] for source in (settings.data, settings.eval_data))
    set_seed(settings.seed)
    base = _load(settings, studies_by_itself=not rows)
    study = _question_study(base, rows) if rows else _chunk_study(base)
    metadata = {"distillation": {**settings.as_dict(), "chats": base.holds_chats}}
    base.bank.add(settings.name, base.config, tokenizer=base.preprocessor.tokenizer, metadata=metadata)
    study.check_room(Room(base.bank, settings.name))
    return Classroom(
        base.bank,
        base.document,
        study,
        _eval_questions(base, eval_rows) if eval_rows else None,
        Collator(padding_id(base.preprocessor.tokenizer)),
        settings.batch_size,
    )


def _load(settings: Distillation, studies_by_itself: bool) -> _Base:
    """Load the base and the document; raises `UnsupportedModelError` for a base that cannot be the teacher."""
    model, preprocessor = load_base(settings.model)
    if preprocessor.is_encoder_decoder:
        raise UnsupportedModelError(f"{type(model).__name__} is an encoder-decoder; distill takes a causal model.")
    document = Document.read(settings.document, preprocessor.tokenizer)
    bank = attach_writer(model)
    config = settings.prefix_config(document.num_tokens, document.text)
    readable = num_readable(bank)
    has_template = bool(preprocessor.tokenizer.chat_template)
    holds_chats = settings.messages is not None or (studies_by_itself and has_template)
    writer = in_chats(preprocessor) if holds_chats else preprocessor
    teacher = Teacher(bank, writer, settings.num_logits, settings.temperature, settings.max_new_tokens)
    teacher.check_reads(writer.prompt_ids(document.text), readable)
    return _Base(settings, bank, preprocessor, document, config, readable, holds_chats, teacher)


def _question_study(base: _Base, rows: Sequence[Row]) -> QuestionStudy:
    """Return the study of given questions; raises `ConfigError` if one does not fit behind the whole document."""
    settings, num_tokens = base.settings, base.document.num_tokens
    questions = _given_questions(base, base.document.text, has_answers=False)
    if not questions.fit(rows, base.readable):
        raise ConfigError(
            f"the questions of '{settings.data}' want the whole document before them; its {num_tokens:,} tokens, "
            f"question and answer (up to {settings.max_new_tokens:,}) are more than the {base.readable:,} that this "
            "model reads at once; leave data out, and the base studies it in chunks."
        )
    return QuestionStudy(questions, rows, num_tokens, settings.batch_size, settings.seed)


def _chunk_study(base: _Base) -> ChunkStudy:
    """Return the study in which the base asks itself; raises `AntefixError` if no chunk leaves room for a lesson."""
    settings = base.settings
    self_study: ChatStudy | PlainStudy
    if base.holds_chats:
        self_study = ChatStudy(base.teacher, base.preprocessor, settings.kinds)
        lesson = longest_lesson(settings, self_study.longest_form)
    else:
        self_study = PlainStudy(base.teacher, base.preprocessor, settings.kinds)
        lesson = longest_lesson(settings, longest_form=0)
    room = room_to_read(base.readable, lesson, base.config.num_virtual_tokens)
    length = chunk_length(settings, base.document.num_tokens, room, lesson)
    return ChunkStudy(self_study, base.document, length, settings.num_lessons, settings.batch_size, settings.seed)


def _eval_questions(base: _Base, rows: Sequence[Row]) -> EvalQuestions:
    """Return the questions to measure by, without the document if one does not fit behind all of it."""
    questions = _given_questions(base, base.document.text, has_answers=True)
    fits = questions.fit(rows, base.readable)
    if not fits:
        questions = _given_questions(base, "", has_answers=True)
    questions.check_room(rows, Room(base.bank, base.settings.name))
    return EvalQuestions(rows, questions, fits, base.settings.batch_size)


def _given_questions(base: _Base, document: str, has_answers: bool) -> GivenQuestions:
    settings, preprocessor = base.settings, base.preprocessor
    if settings.messages is not None:
        chats = Chats(settings.messages, preprocessor.tokenizer)
        return GivenQuestions(base.teacher, in_chats(preprocessor), chats, document, has_answers, end_with_line=False)
    templates = Templates(Template(settings.prompt or ""), Template(settings.answer or "{answer}"))
    return GivenQuestions(base.teacher, preprocessor, templates, document, has_answers, end_with_line=True)
