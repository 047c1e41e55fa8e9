"""Where numbers are kept in fewer bits, a prefix keeps what the same text in the prompt keeps."""

from __future__ import annotations

import json
from concurrent.futures import Future
from typing import Any

import pytest
import torch

import antefix
from antefix.initialize import token_prefix
from tests.vllm.bases import solo_answer
from tests.vllm.conftest import World

LOSSY = {
    "bf16": {"dtype": "bfloat16"},
    "fp8 cache": {"kv_cache_dtype": "fp8"},
    "bf16, fp8 cache": {"dtype": "bfloat16", "kv_cache_dtype": "fp8"},
}
NUM_PROMPTS, MAX_TOKENS = 20, 24


PROMPTS = [[(7 * start + 3 * i) % 500 + 3 for i in range(5 + start)] for start in range(NUM_PROMPTS)]


class Texts:
    """A text and the prefix that equals it, what Transformers answers after it, and an engine for each kind."""

    def __init__(self, world: World) -> None:
        bank = antefix.attach(world.load("Llama"))
        text = [bank.model.config.bos_token_id, *((5 * i) % 500 + 3 for i in range(32))]  # type: ignore[union-attr]
        prefix = token_prefix(bank.model, torch.tensor([text]), bank.sites)
        file = world.folder / "text.safetensors"
        antefix.save_prefix(prefix, file)
        requests = [
            *({"prompt": prompt, "prefix": "text"} for prompt in PROMPTS),
            *({"prompt": [*text, *prompt], "prefix": None} for prompt in PROMPTS),
        ]
        self.started: dict[str, Future[dict[str, Any]]] = {}
        for kind, settings in LOSSY.items():
            job = {
                "base": world.base("Llama"),
                "prefixes": {"text": str(file)},
                "engine": world.engine | settings,
                "sampling": {"max_tokens": MAX_TOKENS},
                "requests": requests,
                "rounds": 1,
            }
            self.started[kind] = world.start(job)
        bank.add("text", prefix)
        self.expected = [solo_answer(bank, "text", prompt, MAX_TOKENS) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def texts(world: World) -> Texts:
    return Texts(world)


@pytest.mark.parametrize("kind", LOSSY)
def test_a_prefix_loses_no_more_than_its_text(kind: str, texts: Texts, record_property: Any) -> None:
    (found,) = texts.started[kind].result()["rounds"]
    kept = {
        length: [
            sum(a[:length] == b[:length] for a, b in zip(answers, texts.expected, strict=True))
            for answers in (found[:NUM_PROMPTS], found[NUM_PROMPTS:])
        ]
        for length in (1, MAX_TOKENS)
    }
    cells = [f"{n} of {NUM_PROMPTS}" for of_both in kept.values() for n in of_both]
    record_property("lossy", json.dumps([kind, *cells]))
    for of_prefix, of_text in kept.values():
        assert of_prefix >= of_text - 3  # what is rounded differs, so that either may lose a close call more
