"""Chunks of documents, lessons that a base writes about them, and files that hold them."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

import antefix
from antefix.bank import PrefixBank
from antefix.errors import ContextLengthError, DataError
from antefix.training.chats import in_chats
from antefix.training.distillation.chat import ChatStudy
from antefix.training.distillation.document import Document, num_covered
from antefix.training.distillation.lessons import Round
from antefix.training.distillation.plain import PlainStudy
from antefix.training.distillation.questions import GivenQuestions
from antefix.training.distillation.seeds import INSTRUCTIONS
from antefix.training.distillation.study import ChunkStudy, rounds
from antefix.training.distillation.targets import Targets
from antefix.training.distillation.teacher import Teacher
from antefix.training.room import Room
from antefix.training.templates import Template, Templates
from antefix.training.tokens import TextPreprocessor
from tests.conftest import build_model
from tests.unit.distillation.conftest import TEMPLATE

Base = tuple[PrefixBank, TextPreprocessor]
LINES = "".join(f"{number} Bomar Grikins works as a cook in Fealby.\n" for number in range(30))


@pytest.mark.parametrize("length", [7, 60, 300, 401])
def test_the_windows_of_every_reading_cover_the_document(base: Base, length: int) -> None:
    document = Document(LINES, base[1].tokenizer)
    readings = [document.windows(random.Random(seed), length) for seed in range(50)]
    assert len({len(chunks) for chunks in readings}) == 1
    for chunks in readings:
        assert num_covered((chunk.start, chunk.end) for chunk in chunks) == document.num_tokens
        for chunk in chunks:
            assert 0 < chunk.end - chunk.start <= length
            assert chunk.text in LINES
    assert len({tuple(sorted(chunk.start for chunk in chunks)) for chunks in readings}) > 1


def test_a_chunk_begins_a_line_where_one_is_near(base: Base) -> None:
    document = Document(LINES, base[1].tokenizer)
    chunks = [chunk for seed in range(10) for chunk in document.windows(random.Random(seed), 100)]
    assert all(chunk.text[0].isdecimal() for chunk in chunks)


def test_a_short_document_is_one_chunk(base: Base) -> None:
    document = Document("Bomar likes chess.", base[1].tokenizer)
    (chunk,) = document.windows(random.Random(0), 100)
    assert chunk.text == "Bomar likes chess."


def test_coverage_counts_every_token_once() -> None:
    assert num_covered([(0, 10), (5, 12), (20, 25), (21, 22)]) == 17
    assert num_covered([]) == 0


def test_an_empty_document_is_refused(base: Base) -> None:
    with pytest.raises(DataError, match="holds no text"):
        Document("", base[1].tokenizer)


def test_plain_lessons_stand_as_the_teacher_wrote_them(base: Base, teacher: Teacher) -> None:
    tokenizer = base[1].tokenizer
    (chunk,) = Document("Bomar likes chess.\n", tokenizer).windows(random.Random(0), 100)
    lessons = PlainStudy(teacher, base[1], ("note",)).lessons(chunk, random.Random(1), 24)
    assert lessons
    for lesson in lessons:
        assert lesson.ids[0] == tokenizer.bos_token_id
        opening = [token for token, written in zip(lesson.ids, lesson.is_written, strict=True) if not written]
        assert tokenizer.decode(opening, skip_special_tokens=True) == "Note:"
        assert len(lesson.targets.own) == sum(lesson.is_written)
        assert lesson.ids[-1] in teacher.ends | teacher.line_breaks


def test_empty_and_endless_lines_teach_nothing(base: Base, teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    (chunk,) = Document("Bomar likes chess.\n", base[1].tokenizer).windows(random.Random(0), 100)
    line = base[1].tokenizer(" a cook", add_special_tokens=False)["input_ids"]
    end = base[1].tokenizer("\n", add_special_tokens=False)["input_ids"]
    written = [[*line, *end], end, line]
    monkeypatch.setattr(teacher, "write", lambda rows, seed, stops_at_line_break: written[: len(rows)])
    (lesson,) = PlainStudy(teacher, base[1], ("note",)).lessons(chunk, random.Random(1), 3)
    assert base[1].tokenizer.decode(lesson.ids, skip_special_tokens=True) == "Note: a cook\n"


def test_lines_of_a_tokenizer_that_puts_a_space_before_each_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Llama's first ones do: a line opens as in the prompt of whoever asks."""
    tokenizer = _with_leading_space()
    preprocessor = TextPreprocessor(tokenizer, tokenizer, is_encoder_decoder=False)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    teacher = Teacher(antefix.attach(model), preprocessor, num_logits=5, temperature=1.0, max_new=12)
    (chunk,) = Document(LINES, tokenizer).windows(random.Random(0), 2000)
    opening, line, unfinished = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("Question:", "Question: Bomar works.\n", "Question: Bomar works.")
    )
    parts = [line[len(opening) :], unfinished[len(opening) :]]
    monkeypatch.setattr(teacher, "write", lambda rows, seed, stops_at_line_break: parts[: len(rows)])
    (lesson,) = PlainStudy(teacher, preprocessor, ("question",)).lessons(chunk, random.Random(1), 2)
    assert tokenizer.decode(lesson.ids, skip_special_tokens=True) == "Question: Bomar works.\nAnswer: Bomar works.\n"
    asked = preprocessor.prompt_ids("Question: Bomar works.\nAnswer:")
    assert lesson.ids[: len(asked)] == asked


def _with_leading_space() -> LlamaTokenizer:
    """Return a tokenizer of single letters and bytes."""
    letters = sorted(set(LINES + "Question: Answer:") - {" ", "\n"})
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *letters]
    return LlamaTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[])


@pytest.mark.parametrize("end_with_line", [True, False])
def test_given_answers_end_as_the_teacher_would_end_them(base: Base, teacher: Teacher, end_with_line: bool) -> None:
    wording = Templates(Template("Question: {q}\nAnswer:"), Template(" {a}"))
    given = GivenQuestions(teacher, base[1], wording, "Bomar likes chess.\n", True, end_with_line)
    rows = [("row 1", {"q": "What does Bomar like?", "a": "chess"}), ("row 2", {"q": "Who likes chess?", "a": "Bomar"})]
    for lesson, answer in zip(given.lessons(rows, seed=0), (" chess", " Bomar"), strict=True):
        written = [token for token, flag in zip(lesson.ids, lesson.is_written, strict=True) if flag]
        assert base[1].tokenizer.decode(written) == answer + ("" if end_with_line else "</s>")
        assert len(lesson.targets.own) == len(written)


def test_a_question_past_the_positions_is_named(teacher: Teacher) -> None:
    bank = antefix.attach(build_model("gpt2"))
    preprocessor = TextPreprocessor(teacher.tokenizer, teacher.tokenizer, is_encoder_decoder=False)
    reader = Teacher(bank, preprocessor, num_logits=5, temperature=1.0, max_new=12)
    wording = Templates(Template("Question: {q}\nAnswer:"), Template(" {a}"))
    rows = [("row 1", {"q": "Who?", "a": "Bomar"}), ("row 2", {"q": "Who? " * 30, "a": "Bomar"})]
    given = GivenQuestions(reader, preprocessor, wording, "Bomar likes chess.\n", True, True)
    given.check_room(rows[:1], Room(bank))
    with pytest.raises(ContextLengthError, match="shorten the question of row 2 or the prefix"):
        given.check_room(rows, Room(bank))
    opens_none = replace(preprocessor, adds_special_tokens=False)
    bare = GivenQuestions(reader, opens_none, Templates(Template("{q}"), Template("{a}")), "", True, True)
    with pytest.raises(DataError, match="the question of row 3 has no tokens"):
        bare.check_room([rows[0], ("row 3", {"q": "", "a": "Bomar"})], Room(bank))


def test_document_question_and_answer_want_their_tokens_together(teacher: Teacher) -> None:
    preprocessor = TextPreprocessor(teacher.tokenizer, teacher.tokenizer, is_encoder_decoder=False)
    wording = Templates(Template("Question: {q}\nAnswer:"), Template(" {a}"))
    rows = [("row 1", {"q": "Who?", "a": "Bomar"}), ("row 2", {"q": "Who, then?", "a": "Bomar likes chess"})]
    given = GivenQuestions(teacher, preprocessor, wording, "Bomar likes chess.\n", True, False)
    text = "Bomar likes chess.\n\nQuestion: Who, then?\nAnswer:"
    needed = len(preprocessor.prompt_ids(text)) + len(given.lessons(rows, seed=0)[1].targets.own)
    assert given.fit(rows, needed)
    assert not given.fit(rows, needed - 1)
    assert given.fit(rows[:1], needed - 1)
    assert given.fit(rows, None)


def test_a_chat_asks_itself_with_the_chunk_and_is_taught_without(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, preprocessor = base
    tokenizer = copy.deepcopy(preprocessor.tokenizer)
    tokenizer.chat_template = TEMPLATE
    preprocessor = TextPreprocessor(tokenizer, tokenizer, is_encoder_decoder=False)
    teacher = Teacher(bank, in_chats(preprocessor), num_logits=5, temperature=1.0, max_new=60)
    asked: list[str] = []
    answer = teacher.answer

    def noted(contexts: list[list[int]], seed: int, stops_at_line_break: bool) -> list[list[int]]:
        asked.extend(tokenizer.decode(context) for context in contexts)
        return answer(contexts, seed, stops_at_line_break)

    monkeypatch.setattr(teacher, "answer", noted)
    (chunk,) = Document("Bomar likes chess.\n", tokenizer).windows(random.Random(0), 100)
    lessons = ChatStudy(teacher, preprocessor, ("question",)).lessons(chunk, random.Random(1), 8)
    assert lessons
    instructions, contexts = asked[:8], asked[8:]
    assert all(text.startswith("<s>user: Bomar likes chess.\n\n") for text in asked)
    assert all(INSTRUCTIONS["question"] in text for text in instructions)
    for lesson, context in zip(lessons, contexts, strict=True):
        prompt = [token for token, written in zip(lesson.ids, lesson.is_written, strict=True) if not written]
        assert tokenizer.decode(prompt) == context.replace("Bomar likes chess.\n\n", "", 1)


def study(base: Base, teacher: Teacher) -> ChunkStudy:
    document = Document(LINES, base[1].tokenizer)
    plain = PlainStudy(teacher, base[1], ("note",))
    return ChunkStudy(plain, document, chunk_length=80, num_lessons=20, batch_size=8, seed=4)


def test_a_round_is_the_same_whenever_it_is_asked_for(base: Base, teacher: Teacher) -> None:
    asked = study(base, teacher)
    assert asked.num_rounds == 3
    second, first = asked.round(1), asked.round(0)
    again = asked.round(1)
    assert [lesson.ids for lesson in again.lessons] == [lesson.ids for lesson in second.lessons]
    assert (first.start, first.end) != (second.start, second.end)


def test_rounds_are_kept_and_read_again(base: Base, teacher: Teacher, tmp_path: Path) -> None:
    made = list(rounds(study(base, teacher), tmp_path))
    assert sum(len(one.lessons) + one.num_discarded for one in made) == 20

    class Unwilling(ChunkStudy):
        def round(self, number: int) -> Round:
            raise AssertionError("everything is there")

    asked = study(base, teacher)
    read = list(rounds(Unwilling(**vars(asked)), tmp_path))
    for one, kept in zip(made, read, strict=True):
        assert (one.start, one.end, one.num_discarded) == (kept.start, kept.end, kept.num_discarded)
        for lesson, same in zip(one.lessons, kept.lessons, strict=True):
            assert (lesson.ids, lesson.is_written) == (same.ids, same.is_written)
            for name in ("ids", "log_probs", "rest", "own"):
                assert torch.equal(getattr(lesson.targets, name), getattr(same.targets, name))


def test_a_round_without_lessons_is_kept_too(tmp_path: Path) -> None:
    Round(3, 9, (), num_discarded=8).save(tmp_path / "r.safetensors")
    kept = Round.load(tmp_path / "r.safetensors")
    assert (kept.start, kept.end, kept.num_discarded, list(kept.lessons)) == (3, 9, 8, [])


def test_a_damaged_round_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    path.write_bytes(b"no lessons")
    with pytest.raises(DataError, match=r"r\.safetensors' is no intact file of lessons"):
        Round.load(path)


def test_targets_without_tokens_can_be_joined() -> None:
    empty = Targets(torch.empty(0, 5).int(), torch.empty(0, 5).half(), torch.empty(0), torch.empty(0))
    assert len(Targets.joined([empty, empty]).own) == 0
