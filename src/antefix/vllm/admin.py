"""`GET`, `POST` and `DELETE` of `/v1/prefixes`: prefixes listed, added, replaced and removed while the server runs."""

from __future__ import annotations

import asyncio
import hmac
import json
import os
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from antefix.errors import AntefixError, ConfigError, UnknownPrefixError
from antefix.vllm.asgi import Receive, Response, Scope, error_response, header, json_response, read_body
from antefix.vllm.prefixes import Prefixes
from antefix.vllm.roster import Roster
from antefix.vllm.settings import ADMIN_KEY
from antefix.vllm.ticket import Ticket

PATH = "/v1/prefixes"
_MAX_BYTES = 2**16


class Admin:
    """Changes a roster for whoever has the key that was given at the server's start."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._key = os.environ.get(ADMIN_KEY, "")

    @cached_property
    def _prefixes(self) -> Prefixes:
        """What checks a file against the base model, whose layers are looked at once."""
        return Prefixes(self._roster.base)

    async def answer(self, scope: Scope, path: str, receive: Receive, taken: set[str]) -> Response:
        """Answer one request; no prefix may have a name that is `taken` by another model of the server."""
        if not self._key:
            why = f"prefixes cannot be changed here: the server was started without {ADMIN_KEY}."
            return error_response(403, why)
        if not hmac.compare_digest(header(scope, b"authorization"), f"Bearer {self._key}".encode()):
            return error_response(401, "the administrator's key is missing or wrong.", "AuthenticationError")
        body = await read_body(receive, most=_MAX_BYTES)
        if body is None:
            return error_response(413, f"a body may have {_MAX_BYTES} bytes here.")
        try:
            return await self._act(scope["method"], path, body, taken)
        except UnknownPrefixError as error:
            return error_response(404, str(error), "NotFoundError")
        except (AntefixError, OSError) as error:
            return error_response(400, str(error))

    async def _act(self, method: str, path: str, body: bytes, taken: set[str]) -> Response:
        match method, path.removeprefix(PATH):
            case "GET", "":
                entries = [_entry(ticket) for ticket in self._roster.tickets().values()]
                return json_response(200, {"object": "list", "data": entries})
            case "POST", "":
                return json_response(200, _entry(await self._add(body, taken)))
            case "DELETE", name if name:
                return json_response(200, {"id": self._remove(name[1:]), "object": "prefix", "deleted": True})
        return error_response(405, f"use GET or POST on {PATH}, or DELETE on {PATH}/NAME.")

    async def _add(self, body: bytes, taken: set[str]) -> Ticket:
        try:
            fields = json.loads(body)
            name, file = fields["name"], fields.get("file", f"{fields['name']}.safetensors")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(
                'the body must be JSON such as {"name": "legal", "file": "legal.safetensors"}.'
            ) from error
        if not isinstance(name, str) or not isinstance(file, str):
            raise ConfigError("a name and a file are strings.")
        if name in taken:
            raise ConfigError(f"'{name}' is the base model's name, or that of an adapter.")
        path = self._inside(file)
        ticket = await asyncio.to_thread(lambda: self._prefixes.add(name, path))
        self._roster.put(ticket)
        return ticket

    def _inside(self, file: str) -> Path:
        directory = self._roster.directory
        if directory is None:
            raise ConfigError("no file can be added: the server was started without --prefix-dir.")
        path = directory / file
        is_name = Path(file).name == file and file.isprintable()
        if not is_name or path.resolve().parent != directory.resolve():
            raise ConfigError(f"{file!r} is no file of the directory that this server takes prefixes from.")
        return path

    def _remove(self, name: str) -> str:
        tickets = self._roster.tickets()
        if name not in tickets:
            raise UnknownPrefixError(f"there is no prefix of this name; there are {len(tickets)}.")
        self._roster.remove(name)
        return name


def _entry(ticket: Ticket) -> dict[str, Any]:
    return {"id": ticket.name, "object": "prefix", **{k: v for k, v in asdict(ticket).items() if k != "name"}}
