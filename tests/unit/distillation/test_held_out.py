"""Which lessons are held out: none that is learned from."""

from __future__ import annotations

import pytest
import torch

from antefix.errors import DataError
from antefix.training.distillation.lessons import Lesson, Round
from antefix.training.distillation.run import _split_lessons
from antefix.training.distillation.targets import Targets


def lesson(prompt: list[int], written: list[int]) -> Lesson:
    none = torch.empty(len(written), 0)
    flags = [False] * len(prompt) + [True] * len(written)
    return Lesson(prompt + written, flags, Targets(none.int(), none, none[:, :0].sum(1), none.sum(1)))


@pytest.mark.parametrize(
    ("lessons", "held_out"),
    [
        ([lesson([1, place % 3], [place]) for place in range(25)], [9, 19]),
        ([lesson([1, place % 15], [place]) for place in range(60)], [9, 24, 39, 54]),
        ([lesson([1, place % 3], [place % 14]) for place in range(70)], [9, 19, 29, 39, 51, 61]),
        ([lesson([1], [place % 5 % 4]) for place in range(20)], [1, 6, 11, 16]),
    ],
    ids=["all differ", "questions asked again", "lessons written again", "few lessons written again"],
)
def test_what_is_held_out_is_not_learned_from(lessons: list[Lesson], held_out: list[int]) -> None:
    _, found = _split_lessons([Round(0, 9, lessons[:10]), Round(0, 9, lessons[10:])])
    assert [lessons.index(one) for one in found] == held_out


def test_a_question_that_the_base_asked_itself_is_held_out_with_all_its_answers() -> None:
    """A base that goes on from text writes the question, too, and learns it."""
    none = torch.empty(2, 0)
    targets, flags = Targets(none.int(), none, none.sum(1), none.sum(1)), [False, True, False, True]
    asked = [Lesson([1, place % 15, 2, place], flags, targets) for place in range(60)]
    trained, held_out = _split_lessons([Round(0, 9, asked + [lesson([3], [place]) for place in range(20)])])
    questions = [{one.ids[1] for one in part if one.ids[0] == 1} for part in (trained, held_out)]
    assert questions[1]
    assert questions[0].isdisjoint(questions[1])


@pytest.mark.parametrize(("number", "different"), [(60, 1), (9, 9)])
def test_too_few_lessons_are_none(number: int, different: int) -> None:
    with pytest.raises(DataError, match=f"wrote {number} usable lessons, {different} of them different, too few"):
        _split_lessons([Round(0, 9, [lesson([1], [place % different]) for place in range(number)])])
