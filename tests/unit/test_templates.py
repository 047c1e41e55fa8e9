"""Templates over the fields of a row, and the sentence for one that does not fit."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pytest

from antefix.errors import DataError
from antefix.training.examples import Example, examples_of
from antefix.training.templates import Template, Templates, unescape


def test_a_null_field_is_named() -> None:
    with pytest.raises(DataError, match="field 'us' of line 3 is null"):
        Template("{us}").fill({"us": None}, "line 3")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ([1], "a list"),
        ({"a": 1}, "an object"),
        (float("nan"), "not a number"),
        (float("inf"), "infinite"),
        (b"abc", "binary"),
        (Path("a"), "of the kind [A-Za-z]+Path"),
    ],
)
def test_what_is_neither_text_nor_a_number_is_named(value: object, kind: str) -> None:
    with pytest.raises(DataError, match=f"field 'us' of line 3 is {kind}; a template takes text and numbers"):
        Template("{us}").fill({"us": value}, "line 3")


def test_numbers_and_times_are_written_as_they_are() -> None:
    values = {"a": 1, "b": True, "c": Decimal("1.50"), "d": datetime(2026, 1, 2, 3, 4), "e": 2.5}
    assert Template("{a} {b} {c} {d} {e}").fill(values, "line 1") == "1 True 1.50 2026-01-02 03:04:00 2.5"


def test_escapes_of_the_command_line() -> None:
    assert unescape(r"a\n\tb\\n") == "a\n\tb\\n"


def test_templates_fill_fields_and_keep_doubled_braces() -> None:
    rows = [("line 1", {"q": "why?", "n": 3})]
    (example,) = examples_of(rows, Templates(Template("{{Q}} {q} {n}\n"), Template("{q}")))
    assert example == Example("{Q} why? 3\n", "why?")


def test_an_unknown_field_is_named_with_those_there_are() -> None:
    with pytest.raises(DataError, match=r"names the field 'question', but line 7 has 'q', 'a'"):
        Template("{question}").fill({"q": 1, "a": 2}, "line 7")


@pytest.mark.parametrize("text", ["{", "}", "{}", "{0.x}", "{a.__class__}", "{a[0]}", "{a!r}", "{a:>10}", "{0}"])
def test_templates_are_fields_only(text: str) -> None:
    with pytest.raises(DataError, match="template"):
        Template(text)


def test_a_context_comes_before_the_prompt() -> None:
    templates = Templates(Template("{q}"), Template("{a}"))
    assert templates.example(("line 1", {"q": "b", "a": "c"}), "a ") == Example("a b", "c")
    assert templates.prompt(("line 1", {"q": "b"}), "a ") == "a b"


def test_an_answer_that_is_always_the_same_is_refused() -> None:
    with pytest.raises(DataError, match="the answer template 'yes' names no field"):
        Templates(Template("{q}"), Template("yes"))
