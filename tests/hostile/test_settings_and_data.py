"""Recipes, templates and data of any content: they are taken, or refused in a sentence, and nothing is written."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import antefix
from antefix.training import Distillation, Recipe
from antefix.training.rows import TABLES, read_rows
from antefix.training.templates import Template

ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(["text", "mlp"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
NUM_EXAMPLES = 300
FUZZED = settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def _some(cls: type[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return mappings of some settings of a dataclass, and of one it does not have, to anything."""
    names = st.sampled_from([field.name for field in fields(cls)]) | st.just("learning-rate")
    return st.dictionaries(names, ODD, max_size=2)


@FUZZED
@given(
    made=st.one_of(
        st.tuples(st.just(Recipe), _some(Recipe)),
        st.tuples(st.just(Distillation), _some(Distillation)),
    ),
    prefix=st.none() | _some(antefix.PrefixConfig),
)
def test_settings_are_taken_or_refused(made: tuple[Any, dict[str, Any]], prefix: dict[str, Any] | None) -> None:
    cls, given_settings = made
    needed = {"model": "m", "data": "d", "prompt": "{a}", "answer": "{b}"} if cls is Recipe else {"document": "d"}
    whole = {"model": "m", **needed, **given_settings, **({} if prefix is None else {"prefix": prefix})}
    refused_or_kept(lambda: json.dumps(cls.from_settings(whole).as_dict()))


@FUZZED
@given(
    content=st.binary(max_size=80) | st.text(st.characters(), max_size=80).map(lambda t: t.encode("utf-8", "replace"))
)
def test_a_recipe_of_any_bytes_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(antefix.AntefixError):
        Recipe.from_yaml(path)


@FUZZED
@given(
    text=st.text(max_size=30) | st.text("{}a.[]!:", max_size=12),
    row=st.dictionaries(st.text(max_size=4), ODD, max_size=3),
)
def test_a_template_of_any_text_fills_or_is_refused(text: str, row: dict[str, Any]) -> None:
    refused_or_kept(lambda: Template(text).fill(row, "line 1"))


@FUZZED
@given(
    kind=st.sampled_from([*TABLES, "jsonl.gz", "csv.gz"]),
    content=st.binary(max_size=200) | st.text('{}[]",:ab\n\r\x00\\1', max_size=60).map(str.encode),
    packed=st.booleans(),
)
def test_data_of_any_bytes_is_read_or_refused(kind: str, content: bytes, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / f"data.{kind}"
    path.write_bytes(gzip.compress(content) if packed else content)
    refused_or_kept(lambda: read_rows(path))
    path.unlink()
    assert list(tmp_path.iterdir()) == []


def refused_or_kept(act: Callable[[], object]) -> None:
    """Do something that may fail in one way only: by an error of antefix's own."""
    with contextlib.suppress(antefix.AntefixError):
        act()
