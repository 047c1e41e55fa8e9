"""`PrefixMiddleware`: a prefix is a model's name, in an ASGI layer around vLLM's own server."""

from __future__ import annotations

import json
from typing import Any

from antefix.vllm.admin import PATH, Admin
from antefix.vllm.asgi import (
    Application,
    Receive,
    Response,
    Scope,
    Send,
    ask,
    error_response,
    header,
    json_response,
    read_body,
    replay,
    with_body,
)
from antefix.vllm.requests import prompts_to_count, refusal, surely_fits, too_long, with_prefix, writes_a_ticket
from antefix.vllm.responses import ResponseRewriter, in_terms_of, naming_how_many
from antefix.vllm.roster import Roster
from antefix.vllm.served import ServedModel
from antefix.vllm.ticket import Ticket

_WRITERS = ("/v1/completions", "/v1/chat/completions")
_LARGE = 2**20
"""A body of more bytes is read only from a client that may list the models."""


class PrefixMiddleware:
    """Answers for prefixes by completions and chat completions, lists them, and lets an administrator change them."""

    def __init__(self, app: Application) -> None:
        self._app = app
        self._roster = Roster.of_environment()
        self._admin = Admin(self._roster)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on to vLLM."""
        path = scope["path"].removeprefix(scope.get("root_path", "")) if scope["type"] == "http" else ""
        if path == "/v1/models" and scope["method"] == "GET":
            await (await self._list(scope)).send_to(send)
        elif path == PATH or path.startswith(f"{PATH}/"):
            await (await self._admin.answer(scope, path, receive, ServedModel(scope).taken)).send_to(send)
        elif path and scope["method"] == "POST" and not header(scope, b"content-type").startswith(b"multipart/"):
            await self._post(scope, path, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _list(self, scope: Scope) -> Response:
        answer = await ask(self._app, scope, "GET", "/v1/models")
        if answer.status != 200:
            return answer
        content = answer.content
        base, room = content["data"][0], ServedModel(scope).room
        content["data"] += [
            {
                **base,
                "id": name,
                "owned_by": "antefix",
                "parent": base["id"],
                "permission": [],
                "max_model_len": max(0, room - ticket.num_virtual_tokens),
            }
            for name, ticket in self._roster.tickets().items()
        ]
        return json_response(200, content, answer.headers)

    async def _post(self, scope: Scope, path: str, receive: Receive, send: Send) -> None:
        length = header(scope, b"content-length")
        if not length.isdigit() or int(length) > _LARGE:
            allowed = await ask(self._app, scope, "GET", "/v1/models")
            if allowed.status != 200:
                await allowed.send_to(send)
                return
        body = await read_body(receive) or b""
        request = _parse(body)
        if path == "/v1/completions":
            request.pop("messages", None)  # vLLM ignores them there; elsewhere here they are what tells a chat
        name = request.get("model")
        tickets = self._roster.tickets()
        ticket = tickets.get(name) if isinstance(name, str) else None
        refused = await self._refuse(scope, path, request, ticket, len(body))
        if refused is not None:
            await refused.send_to(send)
        elif ticket is None or path not in _WRITERS:
            await self._app(
                scope, replay(body, receive), ResponseRewriter(send, naming_how_many(len(tickets)), status=404)
            )
        else:
            body = json.dumps(with_prefix(request, ticket, ServedModel(scope).names[0])).encode()
            send = ResponseRewriter(send, in_terms_of(ticket.name, ticket.num_virtual_tokens))
            await self._app(with_body(scope, body), replay(body, receive), send)

    async def _refuse(
        self, scope: Scope, path: str, request: dict[str, Any], ticket: Ticket | None, num_bytes: int
    ) -> Response | None:
        """Return why a request cannot be answered, None if it can, or where vLLM will say why not."""
        if ticket is None:
            reason = "`kv_transfer_params` holds what only this server may write." if writes_a_ticket(request) else None
        elif path not in _WRITERS:
            reason = f"a prefix answers at {' and '.join(_WRITERS)}, and not at {path}."
        elif ticket.name in ServedModel(scope).taken:
            reason = f"'{ticket.name}' names a prefix and another model of this server; give the prefix another name."
        else:
            reason = refusal(request) or await self._too_long(scope, request, ticket, num_bytes)
        if reason is None:
            return None
        allowed = await ask(self._app, scope, "GET", "/v1/models")
        if allowed.status == 200:
            return error_response(400, reason, headers=allowed.headers)
        # Nobody may learn a prefix's name who may not list them: where vLLM asks for no key, it is like any other name.
        return allowed if path in _WRITERS else None

    async def _too_long(self, scope: Scope, request: dict[str, Any], ticket: Ticket, num_bytes: int) -> str | None:
        room = ServedModel(scope).room
        if surely_fits(request, num_bytes, ticket.num_virtual_tokens, room):
            return None
        longest = max([0, *[await self._count(scope, prompt) for prompt in prompts_to_count(request)]])
        return too_long(request, longest, ticket.num_virtual_tokens, room)

    async def _count(self, scope: Scope, prompt: Any) -> int:
        """Return the tokens of a prompt; 0 for one that is none, which vLLM will say."""
        if not isinstance(prompt, dict):
            return len(prompt) if isinstance(prompt, list) else 0
        answer = await ask(self._app, scope, "POST", "/tokenize", json.dumps(prompt).encode())
        return int(answer.content["count"]) if answer.status == 200 else 0


def _parse(body: bytes) -> dict[str, Any]:
    """Return a body's JSON object, an empty one where there is none, for vLLM to say so."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return request if isinstance(request, dict) else {}
