"""Where numbers are kept in fewer bits, a prefix keeps what the same text in the prompt keeps."""

from __future__ import annotations

import json
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


@pytest.mark.parametrize("kind", LOSSY)
def test_a_prefix_loses_no_more_than_its_text(kind: str, world: World, record_property: Any) -> None:
    bank = antefix.attach(world.load("Llama"))
    text = bank.model.config.bos_token_id, *((5 * i) % 500 + 3 for i in range(32))  # type: ignore[union-attr]
    prefix = token_prefix(bank.model, torch.tensor([text]), bank.sites)
    file = world.folder / "text.safetensors"
    antefix.save_prefix(prefix, file)
    bank.add("text", prefix)
    prompts = [[(7 * start + 3 * i) % 500 + 3 for i in range(5 + start)] for start in range(NUM_PROMPTS)]
    expected = [solo_answer(bank, "text", prompt, MAX_TOKENS) for prompt in prompts]
    found = world.run(
        f"lossy-{kind}",
        {
            "base": world.base("Llama"),
            "prefixes": {"text": str(file)},
            "engine": world.engine | LOSSY[kind],
            "sampling": {"max_tokens": MAX_TOKENS},
            "requests": [
                *({"prompt": prompt, "prefix": "text"} for prompt in prompts),
                *({"prompt": [*text, *prompt], "prefix": None} for prompt in prompts),
            ],
            "rounds": 1,
        },
    )["rounds"][0]
    with_prefix, with_text = found[:NUM_PROMPTS], found[NUM_PROMPTS:]
    kept = {
        length: [
            sum(a[:length] == b[:length] for a, b in zip(answers, expected, strict=True))
            for answers in (with_prefix, with_text)
        ]
        for length in (1, MAX_TOKENS)
    }
    cells = [f"{n} of {NUM_PROMPTS}" for of_both in kept.values() for n in of_both]
    record_property("lossy", json.dumps([kind, *cells]))
    for of_prefix, of_text in kept.values():
        assert of_prefix >= of_text - 3  # what is rounded differs, so that either may lose a close call more
