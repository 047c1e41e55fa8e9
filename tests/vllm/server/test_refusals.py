"""What a server refuses, in a sentence and without harm to anybody else."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import pytest

from tests.vllm.server.served import CHAT, NUM_PREFIXES, PROMPTS, Served, refused
from tests.vllm.serving import KEY


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
        ({"prompt": [5] * 250, "extra_body": {"messages": []}}, "positions"),
        ({"max_tokens": None, "prompt": [5] * 250, "extra_body": {"min_tokens": 9}}, "positions"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_had_with_a_prefix(served: Served, settings: dict[str, Any], about: str) -> None:
    status, message = refused(lambda: served.complete("p1", **settings))
    assert status == 400
    assert about in message
    assert message.endswith(".")


@pytest.mark.parametrize(("name", "effort"), [("p1", "high"), ("p31", "low")])  # by itself, and by what it switches on
def test_a_chat_is_as_long_as_its_template_makes_it(served: Served, name: str, effort: Any) -> None:
    create = served.client.chat.completions.create
    status, message = refused(
        lambda: create(model=name, messages=CHAT, max_completion_tokens=5, reasoning_effort=effort)
    )
    assert (status, "positions" in message) == (400, True), message


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
