"""Every greedy answer of vLLM, mixed in one call, is the one that Transformers gives alone."""

from __future__ import annotations

import json
from concurrent.futures import Future
from typing import Any

import pytest

from tests.vllm.cases import CASES, Case
from tests.vllm.conftest import World


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_answers(case: Case, world: World, results: dict[str, Future[dict[str, Any]]], record_property: Any) -> None:
    expected = world.expected(case.base, case.sampling.get("repetition_penalty", 1.0))
    bare = expected[: len(expected) // 6] * 6
    changed = sum(a != b for a, b in zip(expected, bare, strict=True))
    assert changed == len(expected) * 5 // 6  # or else a prefix that is not there would pass
    found = results[case.name].result()
    same = [sum(a == b for a, b in zip(answers, expected, strict=True)) for answers in found["rounds"]]
    record_property("exact", json.dumps([case.name, *(f"{n} of {len(expected)}" for n in same)]))
    assert same == [len(expected)] * 2
    if case.counter:
        assert found["counters"][case.counter] > 0
