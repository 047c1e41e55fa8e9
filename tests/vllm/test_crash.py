"""A server killed in the middle of its work leaves nothing behind that hinders the next one."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import psutil
import pytest
from openai import APIConnectionError, OpenAI

import antefix
from tests.vllm.bases import draw_prefix, solo_answer
from tests.vllm.conftest import World
from tests.vllm.serving import serving


def test_kill_9_and_start_again(world: World, tmp_path: Path) -> None:
    bank = antefix.attach(world.load("Llama"))
    prefix = draw_prefix(bank, 50, seed=3)
    bank.add("p", prefix)
    antefix.save_prefix(prefix, tmp_path / "prefixes" / "p.safetensors")
    content = (tmp_path / "prefixes" / "p.safetensors").read_bytes()
    arguments = [
        "embedded", "--prefix", f"p={tmp_path / 'prefixes' / 'p.safetensors'}", "--dtype", "float32",
        "--enforce-eager", "--max-model-len", "512", "--block-size", "32",
    ]  # fmt: skip
    prompt = [7, 11, 13]

    def ask(client: OpenAI, max_tokens: int) -> list[int]:
        extra = {"ignore_eos": True, "return_token_ids": True}
        answer = client.completions.create(
            model="p", prompt=prompt, max_tokens=max_tokens, temperature=0, extra_body=extra
        )
        return list(answer.choices[0].token_ids)  # type: ignore[attr-defined]

    with serving(arguments, tmp_path / "first.log") as server:
        port = int(server.url.rpartition(":")[2])
        expected = solo_answer(bank, "p", prompt, 8)
        assert ask(server.client, 8) == expected
        broken = []

        def ask_long() -> None:
            with pytest.raises(APIConnectionError):
                ask(server.client, 400)
            broken.append(True)

        waiting = [threading.Thread(target=ask_long) for _ in range(8)]
        for thread in waiting:
            thread.start()
        stream = server.client.completions.create(model="p", prompt=prompt, max_tokens=400, stream=True)
        next(iter(stream))  # the engine is at work now
        processes = server.processes()
        server.process.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(processes, timeout=60)
        assert not alive
        for thread in waiting:
            thread.join(60)
        assert len(broken) == 8

    with serving(arguments, tmp_path / "second.log", port) as server:
        assert ask(server.client, 8) == expected
    assert (tmp_path / "prefixes" / "p.safetensors").read_bytes() == content
    assert [file.name for file in (tmp_path / "prefixes").iterdir()] == ["p.safetensors"]
