"""What a request carries to vLLM's engine: which prefix, where its file is, and a signature.

A client can choose no more than a name. The signature, made with a secret that only the server's own processes know,
keeps it from choosing a file, a length or another user's cache by writing a ticket itself.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from antefix.errors import ConfigError

PARAMETER = "antefix"
"""Where a ticket lies among vLLM's `kv_transfer_params`."""
SECRET = "ANTEFIX_SECRET"
"""The environment variable through which the processes of one server share their secret."""


@dataclass(frozen=True)
class Ticket:
    """One prefix as the engine needs it; `content` is `Prefix.content_hash()`, which the engine checks on loading."""

    name: str
    path: str
    num_virtual_tokens: int
    content: str

    def signed(self) -> dict[str, Any]:
        """Return the `kv_transfer_params` that make a request use this prefix."""
        return {PARAMETER: asdict(self) | {"signature": self._signature()}}

    def salt(self, of_request: str | None) -> str:
        """Return a salt for vLLM's prefix cache, which nobody can guess and new content changes."""
        return _sign("salt", self.content, of_request)

    def _signature(self) -> str:
        return _sign("ticket", self.name, self.path, self.num_virtual_tokens, self.content)


def read_ticket(parameters: Mapping[str, Any] | None) -> Ticket | None:
    """Return the ticket among `kv_transfer_params`, None if there is none; raises `ConfigError` for a forged one."""
    entry = parameters.get(PARAMETER) if isinstance(parameters, Mapping) else None
    if entry is None:
        return None
    if _is_plain(entry):
        fields = {name: value for name, value in entry.items() if name != "signature"}
        ticket = Ticket(**fields)
        if hmac.compare_digest(entry["signature"].encode(), ticket._signature().encode()):
            return ticket
    raise ConfigError("the request names its prefix by a ticket that this server did not write.")


def make_secret() -> None:
    """Draw the secret of this process and of those it will start, unless the environment has one already."""
    os.environ.setdefault(SECRET, secrets.token_hex(32))


def _is_plain(entry: Any) -> bool:
    """Tell whether something from outside has the form of a ticket; nothing else of it is looked at."""
    types = {"name": str, "path": str, "num_virtual_tokens": int, "content": str, "signature": str}
    is_form = type(entry) is dict and set(entry) == set(types)
    return is_form and all(type(entry[name]) is kind for name, kind in types.items())


def _sign(*parts: Any) -> str:
    secret = os.environ.get(SECRET)
    if not secret:
        raise ConfigError(
            f"the environment has no {SECRET}, which `antefix serve` and `antefix.vllm.engine_args` set; on several "
            "machines, set the same long random value on each."
        )
    return hmac.new(secret.encode(), json.dumps(parts).encode(), hashlib.sha256).hexdigest()
