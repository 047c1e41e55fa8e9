"""The embedded model as a teacher."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from antefix.bank import PrefixBank
from antefix.training.base import attach_writer, load_base
from antefix.training.distillation.teacher import Teacher
from antefix.training.tokens import ExampleTokenizer

TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def base() -> Iterator[tuple[PrefixBank, ExampleTokenizer]]:
    model, encoder = load_base("embedded")
    bank = attach_writer(model)
    yield bank, encoder
    bank.detach()


@pytest.fixture
def teacher(base: tuple[PrefixBank, ExampleTokenizer]) -> Teacher:
    bank, encoder = base
    return Teacher(bank, encoder, num_logits=5, temperature=1.0, max_new=12)
