"""A sliding window: within it a prefix is served as it was trained, past it a request with one is refused."""

from __future__ import annotations

import pytest

from tests.vllm.bases import solo_answer
from tests.vllm.conftest import World

WINDOW = 160
PAST_IT = [(3 * i) % 500 + 3 for i in range(150)]


@pytest.mark.parametrize("base", ["Gemma 3", "Mistral"])
def test_past_the_window(base: str, world: World) -> None:
    short, longest = PAST_IT[:20], PAST_IT[: WINDOW - 20 - 8]
    requests = [(short, "p20"), (longest, "p20"), (PAST_IT, "p20"), (PAST_IT, None), (short, None)]
    job = {
        "base": world.base(base),
        "prefixes": {"p20": str(world.file(base, "p20"))},
        "engine": world.engine,
        "sampling": {"max_tokens": 8},
        "requests": [{"prompt": prompt, "prefix": prefix} for prompt, prefix in requests],
        "rounds": 2,
    }
    expected = [solo_answer(world.bank(base), prefix, prompt, 8) for prompt, prefix in requests]
    expected[2] = []  # 20 + 150 tokens: vLLM would hide the prefix from the last ones, in some layers
    found = world.run(f"window-{base}", job)
    assert found["finish"] == [["length", "length", "error", "length", "length"]] * 2
    assert found["rounds"] == [expected] * 2
