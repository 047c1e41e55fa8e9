"""`Served`: a server with prefixes, its client, and the same prefixes in Transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIStatusError, OpenAI
from transformers import AutoTokenizer

import antefix
from tests.vllm.bases import solo_answer
from tests.vllm.serving import ADMIN_KEY, Server

ROOM = 256
PROMPTS = ("Once upon a time", "The sea is", "Lily and Tom went to the park.", "A", "What is the name of the ship?")
CHAT: Any = [{"role": "user", "content": "What is the name of the ship?"}]
NUM_PREFIXES = 32


class Served:
    """A server with prefixes of 32 lengths, its client, and the same prefixes in Transformers."""

    def __init__(self, server: Server, bank: antefix.PrefixBank, directory: Path) -> None:
        self.server = server
        self.client: OpenAI = server.client
        self.bank = bank
        self.directory = directory
        self.tokenizer = AutoTokenizer.from_pretrained(bank.model.config._name_or_path)

    def solo(self, name: str | None, prompt: str, max_tokens: int, **settings: Any) -> str:
        """Return the text that Transformers answers alone."""
        ids = self.tokenizer(prompt, **settings).input_ids
        return str(self.tokenizer.decode(solo_answer(self.bank, name, ids, max_tokens), skip_special_tokens=True))

    def complete(self, model: str, prompt: str = PROMPTS[0], max_tokens: int = 12, **settings: Any) -> Any:
        settings = {"temperature": 0, "extra_body": {"ignore_eos": True}} | settings
        return self.client.completions.create(model=model, prompt=prompt, max_tokens=max_tokens, **settings)

    def administer(self, method: str, path: str = "", key: str = ADMIN_KEY, **settings: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"}
        url = f"{self.server.url}/v1/prefixes{path}"
        return httpx.request(method, url, headers=headers, timeout=60, **settings)


def refused(call: Any) -> tuple[int, str]:
    """Return the status and the sentence of a refusal."""
    with pytest.raises(APIStatusError) as caught:
        call()
    return caught.value.status_code, caught.value.response.json()["error"]["message"]
