"""A sliding window: within it a prefix is served as it was trained, past it a request with one is refused."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from tests.vllm.bases import solo_answer
from tests.vllm.conftest import World

WINDOW = 160
PAST_IT = [(3 * i) % 500 + 3 for i in range(150)]


BASES = ("Gemma 3", "Mistral")
SHORT, LONGEST = PAST_IT[:20], PAST_IT[: WINDOW - 20 - 8]
REQUESTS = [(SHORT, "p20"), (LONGEST, "p20"), (PAST_IT, "p20"), (PAST_IT, None), (SHORT, None)]


@pytest.fixture(scope="module")
def started(world: World) -> dict[str, Future[dict[str, Any]]]:
    """Start an engine for each base."""
    found = {}
    for base in BASES:
        world.bank(base)  # writes the prefix's file
        job = {
            "base": world.base(base),
            "prefixes": {"p20": str(world.file(base, "p20"))},
            "engine": world.engine,
            "sampling": {"max_tokens": 8},
            "requests": [{"prompt": prompt, "prefix": prefix} for prompt, prefix in REQUESTS],
            "rounds": 2,
        }
        found[base] = world.start(job)
    return found


@pytest.mark.parametrize("base", BASES)
def test_past_the_window(base: str, world: World, started: dict[str, Future[dict[str, Any]]]) -> None:
    expected = [solo_answer(world.bank(base), prefix, prompt, 8) for prompt, prefix in REQUESTS]
    expected[2] = []  # 20 + 150 tokens: vLLM would hide the prefix from the last ones, in some layers
    found = started[base].result()
    assert found["finish"] == [["length", "length", "error", "length", "length"]] * 2
    assert found["rounds"] == [expected] * 2
