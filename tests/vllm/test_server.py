"""A server on loopback and the real `openai` client: prefixes as models, refusals, changes while it runs."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import APIStatusError, AsyncOpenAI, OpenAI
from transformers import AutoTokenizer

import antefix
from tests.vllm.bases import draw_prefix, solo_answer
from tests.vllm.conftest import World
from tests.vllm.serving import ADMIN_KEY, KEY, Server, serving

ROOM = 256
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"
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


@pytest.fixture(scope="module")
def served(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("server")
    directory = folder / "prefixes"
    bank = antefix.attach(world.load("Llama"))
    for number in range(NUM_PREFIXES):
        prefix = draw_prefix(bank, 1 + 3 * number, seed=number)
        bank.add(f"p{number}", prefix)
        antefix.save_prefix(prefix, directory / f"p{number}.safetensors")
    (folder / "template.jinja").write_text(TEMPLATE)
    arguments = [
        "embedded", "--prefix-dir", str(directory), "--max-resident-prefixes", "8", "--dtype", "float32",
        "--enforce-eager", "--max-model-len", str(ROOM), "--block-size", "32", "--enable-prompt-tokens-details",
        "--chat-template", str(folder / "template.jinja"), "--allowed-origins", '["http://elsewhere"]',
    ]  # fmt: skip
    with serving(arguments, folder / "server.log") as server:
        yield Served(server, bank, directory)


def test_prefixes_are_listed_as_models(served: Served) -> None:
    listed = {model.id: model for model in served.client.models.list()}
    assert set(listed) == {"embedded", *(f"p{number}" for number in range(NUM_PREFIXES))}
    assert listed["p3"].max_model_len == ROOM - 10  # type: ignore[attr-defined]
    assert (listed["p3"].owned_by, listed["p3"].parent) == ("antefix", "embedded")  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["embedded", "p0", "p5", "p31"])
def test_a_completion(served: Served, name: str) -> None:
    answer = served.complete(name)
    assert answer.choices[0].text == served.solo(None if name == "embedded" else name, PROMPTS[0], 12)
    assert answer.model == name
    assert answer.usage.prompt_tokens == len(served.tokenizer(PROMPTS[0]).input_ids)
    assert answer.usage.completion_tokens == 12
    if name != "embedded":
        assert answer.usage.virtual_tokens == served.bank.prefix(name).num_virtual_tokens
        assert answer.usage.prompt_tokens_details.cached_tokens in (0, None)


def test_prompts_of_several_forms_in_one_request(served: Served) -> None:
    texts = [choice.text for choice in served.complete("p9", list(PROMPTS[:3])).choices]  # type: ignore[arg-type]
    ids = [served.tokenizer(prompt).input_ids for prompt in PROMPTS[:3]]
    assert texts == [served.solo("p9", prompt, 12) for prompt in PROMPTS[:3]]
    assert texts == [choice.text for choice in served.complete("p9", ids).choices]  # type: ignore[arg-type]


def test_a_stream(served: Served) -> None:
    chunks = list(served.complete("p7", stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == served.solo("p7", PROMPTS[0], 12)
    assert {chunk.model for chunk in chunks} == {"p7"}
    assert chunks[-1].usage.virtual_tokens == 22


def test_a_chat(served: Served) -> None:
    text = "user: What is the name of the ship?\nassistant:"
    expected = served.solo("p4", text, 12, add_special_tokens=False)
    create = served.client.chat.completions.create
    settings: Any = {"model": "p4", "messages": CHAT, "temperature": 0, "extra_body": {"ignore_eos": True}}
    whole = create(max_completion_tokens=12, **settings)
    assert (whole.choices[0].message.content, whole.model) == (expected, "p4")
    stream = create(max_completion_tokens=12, stream=True, **settings)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == expected


def test_an_answer_of_open_length_ends_where_the_positions_do(served: Served) -> None:
    answer = served.client.chat.completions.create(
        model="p31", messages=CHAT, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.total_tokens + 94 == ROOM


def test_several_samples(served: Served) -> None:
    answer = served.complete("p6", n=3, temperature=1.0, seed=5)
    assert len({choice.text for choice in answer.choices}) == 3
    again = served.complete("p6", n=3, temperature=1.0, seed=5)
    assert [choice.text for choice in again.choices] == [choice.text for choice in answer.choices]


def test_stop_strings(served: Served) -> None:
    whole = served.solo("p8", PROMPTS[1], 30)
    stop = whole[10:13]
    answer = served.complete("p8", PROMPTS[1], 30, stop=[stop])
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_log_probabilities_of_the_answer(served: Served) -> None:
    answer = served.complete("p2", max_tokens=6, logprobs=1)
    ids = served.tokenizer(PROMPTS[0]).input_ids
    whole = torch.tensor([ids + solo_answer(served.bank, "p2", ids, 6)])
    with served.bank.use("p2"), torch.no_grad():
        logits = served.bank.model(input_ids=whole).logits[0]  # type: ignore[operator]
    expected = logits.log_softmax(-1)[len(ids) - 1 : -1].gather(1, whole[0, len(ids) :, None])[:, 0]
    # Both in fp32; sums are taken in another order.
    torch.testing.assert_close(torch.tensor(answer.choices[0].logprobs.token_logprobs), expected, atol=1e-4, rtol=0)


def test_guided_decoding(served: Served) -> None:
    answer = served.complete("p1", extra_body={"structured_outputs": {"regex": "(yes|no)"}})
    assert answer.choices[0].text in ("yes", "no")


def refused(call: Any) -> tuple[int, str]:
    with pytest.raises(APIStatusError) as caught:
        call()
    return caught.value.status_code, caught.value.response.json()["error"]["message"]


@pytest.mark.parametrize("name", ["nobody", "../p0", "/etc/passwd", "p0.safetensors", "p0/../p1", "P0", "%2e%2e/p0"])
def test_an_unknown_name(served: Served, name: str) -> None:
    status, message = refused(lambda: served.complete(name))
    assert status == 404
    assert f"{NUM_PREFIXES} prefixes" in message
    assert "p1" not in message.replace(name, "")


@pytest.mark.parametrize(
    ("settings", "about"),
    [
        ({"echo": True}, "echo"),
        ({"extra_body": {"prompt_logprobs": 0}}, "prompt_logprobs"),
        ({"extra_body": {"use_beam_search": True}}, "use_beam_search"),
        ({"extra_body": {"kv_transfer_params": {"antefix": {"name": "p1"}}}}, "kv_transfer_params"),
        ({"max_tokens": 251}, "positions"),
        ({"prompt": "word " * 300}, "positions"),
        ({"prompt": [5] * 250}, "positions"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_had_with_a_prefix(served: Served, settings: dict[str, Any], about: str) -> None:
    status, message = refused(lambda: served.complete("p1", **settings))
    assert status == 400
    assert about in message
    assert message.endswith(".")


def test_images_are_refused(served: Served) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages: Any = [{"role": "user", "content": [part]}]
    status, message = refused(lambda: served.client.chat.completions.create(model="p1", messages=messages))
    assert status == 400
    assert "text" in message


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"p1"', b'{"model": ["p1"]}', b"[" * 100_000, b"\xff\xfe{}"])
def test_malformed_bodies(served: Served, body: bytes) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    answer = httpx.post(f"{served.server.url}/v1/completions", content=body, headers=headers, timeout=60)
    assert 400 <= answer.status_code < 500
    assert served.complete("p1").choices[0].text == served.solo("p1", PROMPTS[0], 12)


def nested(depth: int) -> Any:
    found: Any = []
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize("name", ["x", nested(200), nested(700)], ids=["plain", "nested 200", "nested 700"])
@pytest.mark.parametrize("within", [lambda p: p, lambda p: {"vllm_xargs": p}], ids=["", "vllm_xargs"])
def test_a_forged_ticket_is_refused(served: Served, name: Any, within: Any) -> None:
    ticket = {"name": name, "path": "/etc/passwd", "num_virtual_tokens": 4, "content": "0", "signature": "0"}
    forged = within({"kv_transfer_params": {"antefix": ticket}})
    status, message = refused(lambda: served.complete("embedded", extra_body=forged))
    assert (status, "kv_transfer_params" in message) == (400, True)
    assert served.complete("embedded").choices[0].text == served.solo(None, PROMPTS[0], 12)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/responses",
        "/v1/messages",
        "/v1/chat/completions/batch",
        "/v1/completions/render",
        "/v1/embeddings",
        "/invocations",
        "/tokenize",
    ],
)
def test_a_prefix_is_nobody_elsewhere(served: Served, path: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"model": "p1", "prompt": "A", "input": "A", "messages": CHAT, "max_tokens": 2}
    answer = httpx.post(f"{served.server.url}{path}", json=body, headers=headers, timeout=60)
    assert answer.status_code == 400
    assert "/v1/completions and /v1/chat/completions" in answer.json()["error"]["message"]
    plain = httpx.post(f"{served.server.url}/invocations", json={"prompt": "A"}, headers=headers, timeout=60)
    assert plain.status_code == 200


def test_browsers_of_other_origins_may_read_every_answer(served: Served) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Origin": "http://elsewhere"}
    for answer in (
        httpx.get(f"{served.server.url}/v1/models", headers=headers),
        httpx.post(f"{served.server.url}/v1/completions", headers=headers, json={"model": "p1", "echo": True}),
        httpx.post(f"{served.server.url}/v1/completions", headers=headers, json={"model": "p1", "prompt": "A"}),
    ):
        assert "access-control-allow-origin" in answer.headers


def test_a_large_body_is_read_from_whoever_has_the_key(served: Served) -> None:
    body = json.dumps({"model": "p1", "prompt": "word " * 400_000}).encode()
    url, headers = f"{served.server.url}/v1/completions", {"Content-Type": "application/json"}
    assert httpx.post(url, content=body, headers=headers, timeout=60).status_code == 401
    chunks = (body[i : i + 65536] for i in range(0, len(body), 65536))
    allowed = headers | {"Authorization": f"Bearer {KEY}"}
    answer = httpx.post(url, content=chunks, headers=allowed, timeout=60)
    assert (answer.status_code, "positions" in answer.text) == (400, True)
    assert served.administer("POST", content=b"[" * 100_000).status_code == 413


def test_clients_that_go_away(served: Served) -> None:
    port = int(served.server.url.rpartition(":")[2])
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 500\r\n\r\n"
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(head.encode() + b'{"model": "p1", "pro')
    for _ in range(5):
        stream = served.complete("p3", max_tokens=200, stream=True)
        next(iter(stream))
        stream.close()
    assert served.complete("p3").choices[0].text == served.solo("p3", PROMPTS[0], 12)


@pytest.mark.parametrize("settings", [{}, {"echo": True}], ids=["allowed", "refused"])
@pytest.mark.parametrize("model", ["embedded", "p1", "nobody"])
def test_without_a_key_names_cannot_be_found_out(served: Served, model: str, settings: dict[str, Any]) -> None:
    body = {"model": model, "prompt": "A"} | settings
    answer = httpx.post(f"{served.server.url}/v1/completions", json=body, timeout=60)
    assert (answer.status_code, answer.text) == (401, '{"error":"Unauthorized"}')


@pytest.mark.parametrize("path", ["/tokenize", "/invocations", "/v1/responses", "/v1/messages"])
def test_without_a_key_a_prefix_is_like_any_other_name(served: Served, path: str) -> None:
    told = []
    for name in ("p1", "p0", "nx", "ny"):
        body = {"model": name, "prompt": "A", "input": "A", "max_tokens": 2, "temperature": 0}
        answer = httpx.post(f"{served.server.url}{path}", json=body, timeout=60)
        content = json.loads(answer.text.replace(name, "NAME"))
        told.append((answer.status_code, {key: content[key] for key in content if key not in ("id", "created")}))
    assert all(answer == told[0] for answer in told)


def test_prefixes_come_and_go(served: Served) -> None:
    shutil.copy(served.directory / "p10.safetensors", served.directory / "new.v1.safetensors")
    shutil.copy(served.directory / "p11.safetensors", served.directory / "new.v2.safetensors")
    for version, like in (("new.v1", "p10"), ("new.v2", "p11"), ("new.v1", "p10")):
        added = served.administer("POST", json={"name": "new", "file": f"{version}.safetensors"})
        assert added.json()["num_virtual_tokens"] == served.bank.prefix(like).num_virtual_tokens
        # Twice, so that the second answer comes from vLLM's prefix cache: it must be that of the new content.
        for _ in range(2):
            assert served.complete("new").choices[0].text == served.solo(like, PROMPTS[0], 12)
    assert served.administer("DELETE", "/new").json()["deleted"] is True
    assert refused(lambda: served.complete("new"))[0] == 404
    assert served.administer("DELETE", "/new").status_code == 404
    assert len(served.administer("GET").json()["data"]) == NUM_PREFIXES


@pytest.mark.parametrize(
    ("fields", "about"),
    [
        ({"name": "new", "file": "../p0.safetensors"}, "directory"),
        ({"name": "new", "file": "/etc/passwd"}, "directory"),
        ({"name": "new", "file": "absent.safetensors"}, "no prefix file"),
        ({"name": "new", "file": "damaged.safetensors"}, "not an intact"),
        ({"name": "new", "file": "of-another-base.safetensors"}, "does not fit"),
        ({"name": "new", "file": "of-some-layers.safetensors"}, "3 of 6 layers"),
        ({"name": "new", "file": "linked.safetensors"}, "directory"),
        ({"name": "embedded", "file": "p0.safetensors"}, "base model"),
        ({"name": "../new", "file": "p0.safetensors"}, "name"),
        ({"name": 3}, "strings"),
        ([], "JSON"),
    ],
)
def test_what_cannot_be_added(served: Served, tmp_path: Path, fields: Any, about: str) -> None:
    (served.directory / "damaged.safetensors").write_bytes((served.directory / "p9.safetensors").read_bytes()[:-100])
    good = antefix.load_prefix(served.directory / "p9.safetensors")
    fewer = [site for site in good.sites if site.layer < 3]
    some = antefix.Prefix(fewer, *({s.path: part[s.path] for s in fewer} for part in (good.keys, good.values)))
    antefix.save_prefix(some, served.directory / "of-some-layers.safetensors")
    lone = [replace(site, num_key_value_heads=1) for site in good.sites]
    heads = ({s.path: part[s.path][:1] for s in lone} for part in (good.keys, good.values))
    antefix.save_prefix(antefix.Prefix(lone, *heads), served.directory / "of-another-base.safetensors")
    link = served.directory / "linked.safetensors"
    link.unlink(missing_ok=True)
    shutil.copy(served.directory / "p0.safetensors", tmp_path / "outside.safetensors")
    link.symlink_to(tmp_path / "outside.safetensors")
    answer = served.administer("POST", json=fields)
    assert answer.status_code == 400
    assert about in answer.json()["error"]["message"]


def test_only_the_administrator_changes_prefixes(served: Served) -> None:
    for method, path in (("GET", ""), ("POST", ""), ("DELETE", "/p1")):
        assert served.administer(method, path, key=KEY).status_code == 401
    assert served.complete("p1").choices[0].text == served.solo("p1", PROMPTS[0], 12)


def test_a_file_that_changed_behind_the_server_fails_alone(served: Served) -> None:
    file = served.directory / "changing.safetensors"
    shutil.copy(served.directory / "p12.safetensors", file)
    served.administer("POST", json={"name": "changing"})
    shutil.copy(served.directory / "p13.safetensors", file)
    status, _ = refused(lambda: served.complete("changing"))
    assert status == 500
    assert served.complete("p12").choices[0].text == served.solo("p12", PROMPTS[0], 12)
    shutil.copy(served.directory / "p12.safetensors", file)
    assert served.complete("changing").choices[0].text == served.solo("p12", PROMPTS[0], 12)
    served.administer("DELETE", "/changing")


def test_a_thousand_requests_at_once(served: Served) -> None:
    names = [None, *(f"p{number}" for number in range(NUM_PREFIXES))]
    pairs = [(name, prompt) for name in names for prompt in PROMPTS]
    expected = {pair: served.solo(*pair, 16) for pair in pairs}
    asked = [pairs[7 * i % len(pairs)] for i in range(1000)]

    async def ask_all() -> list[str]:
        client = AsyncOpenAI(base_url=f"{served.server.url}/v1", api_key=KEY, max_retries=0, timeout=300)

        async def ask(name: str | None, prompt: str) -> str:
            answer = await client.completions.create(
                model=name or "embedded", prompt=prompt, max_tokens=16, temperature=0, extra_body={"ignore_eos": True}
            )
            return answer.choices[0].text

        return await asyncio.gather(*(ask(*pair) for pair in asked))

    answers = asyncio.run(ask_all())
    wrong = [pair for pair, answer in zip(asked, answers, strict=True) if answer != expected[pair]]
    assert not wrong, f"{len(wrong)} of 1000 differ, the first is {wrong[0]}"
