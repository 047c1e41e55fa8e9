"""Requests and responses of ASGI, and asking vLLM's own application something on the way, as the same client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Message: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


JSON = [(b"content-type", b"application/json")]


@dataclass
class Response:
    """A whole response."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    @property
    def content(self) -> Any:
        """The JSON of the body."""
        return json.loads(self.body)

    async def send_to(self, send: Send) -> None:
        """Give this response to a client."""
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body})


def json_response(status: int, content: Any, headers: Iterable[tuple[bytes, bytes]] = JSON) -> Response:
    """Return JSON, with the headers of the response in whose place it stands: browsers of other origins go by those."""
    body = json.dumps(content).encode()
    return Response(status, of_length(headers, len(body)), body)


def error_response(
    status: int, message: str, kind: str = "BadRequestError", headers: Iterable[tuple[bytes, bytes]] = JSON
) -> Response:
    """Return an error in the form of OpenAI's interface."""
    content = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return json_response(status, content, headers)


async def read_body(receive: Receive, most: int | None = None) -> bytes | None:
    """Return the whole body of a request, or what came of it before the client went away; None if it is too long."""
    parts, length, more = [], 0, True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        length += len(parts[-1])
        if most is not None and length > most:
            return None
        more = message.get("more_body", False)
    return b"".join(parts)


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body which was read already, and afterwards what the client still sends."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def with_body(scope: Scope, body: bytes) -> Scope:
    """Return the scope of a request with another body."""
    return {**scope, "headers": of_length(scope["headers"], len(body))}


def header(scope: Scope, name: bytes) -> bytes:
    """Return a header of a request, empty where it has none; of several the first, which vLLM's server goes by."""
    return next((bytes(value) for found, value in scope["headers"] if found == name), b"")


async def ask(application: Application, scope: Scope, method: str, path: str, body: bytes = b"") -> Response:
    """Return what an application responds to another request by the client of `scope`."""
    response = Response(500, [], b"")

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            response.status, response.headers = message["status"], list(message["headers"])
        elif message["type"] == "http.response.body":
            response.body += message.get("body", b"")

    async def nothing_more() -> Message:
        await asyncio.Event().wait()  # vLLM takes an end of the request for a client that went away
        raise AssertionError

    root = scope.get("root_path", "")
    other = {**scope, "method": method, "path": root + path, "raw_path": (root + path).encode(), "query_string": b""}
    await application(with_body(other, body), replay(body, nothing_more), send)
    return response


def of_length(headers: Iterable[tuple[bytes, bytes]], length: int) -> list[tuple[bytes, bytes]]:
    """Return headers with another length of the body."""
    kept = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    return [*kept, (b"content-length", str(length).encode())]
