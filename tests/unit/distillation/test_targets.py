"""What is kept of a teacher, and the divergence from it, against float64 and torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div

from antefix.training.distillation.targets import Targets

VOCABULARY = 50
HALF = 2e-3
"""Log-probabilities are kept in half precision: 11 bits of numbers up to 8."""


def draw(scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits of a teacher and a student, and tokens."""
    generator = torch.Generator().manual_seed(3)
    teacher, student = (torch.randn(7, VOCABULARY, generator=generator) * scale for _ in range(2))
    return teacher, student, torch.arange(7)


def exact(teacher: Tensor, student: Tensor) -> Tensor:
    """Return the divergence over the whole vocabulary, in float64."""
    teacher, student = teacher.double().log_softmax(-1), student.double().log_softmax(-1)
    return kl_div(student, teacher, reduction="none", log_target=True).sum(1)


def coarse(teacher: Tensor, student: Tensor, number: int) -> Tensor:
    """Return the divergence where all but the teacher's likeliest `number` tokens are one, in float64."""
    order = teacher.argsort(dim=1, descending=True)
    p, q = (logits.double().softmax(-1).gather(1, order) for logits in (teacher, student))
    p, q = (torch.cat([part[:, :number], part[:, number:].sum(1, keepdim=True)], dim=1) for part in (p, q))
    return (p * (p / q).log()).sum(1)


def test_with_every_token_kept_it_is_the_whole_divergence() -> None:
    teacher, student, tokens = draw()
    found = Targets.of(teacher, tokens, number=1000).divergence(student)
    torch.testing.assert_close(found.double(), exact(teacher, student), rtol=HALF, atol=HALF)


@pytest.mark.parametrize("number", [1, 5, 20])
def test_with_some_kept_all_others_count_as_one(number: int) -> None:
    teacher, student, tokens = draw()
    found = Targets.of(teacher, tokens, number).divergence(student)
    torch.testing.assert_close(found.double(), coarse(teacher, student, number), rtol=HALF, atol=HALF)
    assert (found.double() <= exact(teacher, student) + HALF).all()


def test_its_gradient_is_that_of_the_coarse_divergence() -> None:
    teacher, student, tokens = draw()
    gradients = []
    for divergence in (Targets.of(teacher, tokens, 5).divergence, lambda logits: coarse(teacher, logits, 5)):
        logits = student.clone().requires_grad_()
        divergence(logits).sum().backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(*gradients, rtol=HALF, atol=HALF)


def test_a_certain_student_keeps_an_exact_rest() -> None:
    """One minus the sum of probabilities would be zero in fp32, and the divergence infinite."""
    teacher, _, tokens = draw()
    student = teacher * 40
    found = Targets.of(teacher, tokens, 5).divergence(student)
    expected = coarse(teacher, student, 5)
    assert expected.min() > 20, "its own likeliest token leaves the others less than fp32 can tell from nothing"
    torch.testing.assert_close(found.double(), expected, rtol=HALF, atol=HALF)


def test_the_teacher_itself_is_at_no_distance() -> None:
    teacher, _, tokens = draw()
    assert Targets.of(teacher, tokens, 5).divergence(teacher).abs().max() < 1e-4  # the halves' rounding, squared


def test_own_is_the_likelihood_of_the_token_itself() -> None:
    teacher, _, tokens = draw()
    expected = teacher.log_softmax(-1)[range(7), tokens]
    torch.testing.assert_close(Targets.of(teacher, tokens, 2).own, expected)


def test_parts_are_joined_and_split_again() -> None:
    teacher, student, tokens = draw()
    whole = Targets.of(teacher, tokens, 5)
    parts = whole.split([3, 4])
    torch.testing.assert_close(Targets.joined(parts).divergence(student), whole.divergence(student))
    torch.testing.assert_close(parts[1].divergence(student[3:]), whole.divergence(student)[3:])
