"""Tickets: what was signed is read, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from antefix.errors import ConfigError
from antefix.vllm.ticket import SECRET, Ticket, make_secret, read_ticket


def nested(depth: int) -> list[Any]:
    """Return a list in a list, and so on, as JSON may bring it."""
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


TICKET = Ticket("legal", "/prefixes/legal.safetensors", 64, "0a1b")


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET, "a secret")


def test_what_was_signed_is_read() -> None:
    assert read_ticket(TICKET.signed()) == TICKET


@pytest.mark.parametrize("parameters", [None, {}, {"do_remote_prefill": True}, [], "antefix"])
def test_a_request_without_a_ticket_has_none(parameters: Any) -> None:
    assert read_ticket(parameters) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry | {"path": "/etc/passwd"},
        lambda entry: entry | {"num_virtual_tokens": 65},
        lambda entry: entry | {"num_virtual_tokens": "64"},
        lambda entry: entry | {"content": "0a1c"},
        lambda entry: entry | {"name": "other"},
        lambda entry: entry | {"signature": "0" * 64},
        lambda entry: entry | {"signature": "ü"},
        lambda entry: entry | {"signature": None},
        lambda entry: entry | {"more": 1},
        lambda entry: {name: value for name, value in entry.items() if name != "signature"},
        lambda entry: {"signature": entry["signature"]},
        lambda entry: "legal",
        lambda entry: 3,
        lambda entry: [["name", "legal"]],
        lambda entry: entry | {"name": nested(5000)},
        lambda entry: entry | {"num_virtual_tokens": True},
    ],
)
def test_anything_else_is_refused(change: Callable[[Any], Any]) -> None:
    entry = TICKET.signed()["antefix"]
    with pytest.raises(ConfigError, match="did not write"):
        read_ticket({"antefix": change(entry)})


def test_another_secret_makes_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    signed, salt = TICKET.signed(), TICKET.salt("a user's")
    monkeypatch.setenv(SECRET, "another secret")
    assert TICKET.salt("a user's") != salt
    with pytest.raises(ConfigError):
        read_ticket(signed)


def test_salts_differ_by_content_and_user_and_not_by_name() -> None:
    others = [Ticket("legal", TICKET.path, 64, "0a1c").salt(None), TICKET.salt("a user's"), TICKET.salt("")]
    assert len({TICKET.salt(None), *others}) == 4
    assert Ticket("law", "elsewhere", 64, "0a1b").salt(None) == TICKET.salt(None)
    assert TICKET.signed()["antefix"]["signature"] not in (TICKET.salt(None), *others)


def test_a_secret_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    make_secret()
    assert read_ticket(TICKET.signed()) == TICKET
    monkeypatch.delenv(SECRET)
    with pytest.raises(ConfigError, match=SECRET):
        TICKET.signed()
    make_secret()
    assert read_ticket(TICKET.signed()) == TICKET
