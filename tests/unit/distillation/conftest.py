"""The embedded model as a teacher."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from antefix.bank import PrefixBank
from antefix.training.base import attach_writer, load_base
from antefix.training.distillation.teacher import Teacher
from antefix.training.tokens import TextPreprocessor

TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def base() -> Iterator[tuple[PrefixBank, TextPreprocessor]]:
    model, preprocessor = load_base("embedded")
    bank = attach_writer(model)
    yield bank, preprocessor
    bank.detach()


@pytest.fixture
def teacher(base: tuple[PrefixBank, TextPreprocessor]) -> Teacher:
    bank, preprocessor = base
    return Teacher(bank, preprocessor, num_logits=5, temperature=1.0, max_new=12)
