"""`Roster`: the prefixes that a running server offers, in one file that all its front ends follow."""

from __future__ import annotations

import copy
import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from antefix.errors import ConfigError
from antefix.storage import write_atomically
from antefix.vllm.prefixes import Prefixes
from antefix.vllm.settings import ROSTER
from antefix.vllm.ticket import Ticket


class Roster:
    """Tickets by name, read anew whenever the file has changed; `directory` is where more may be taken from."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: tuple[int, int] | None = None
        self._content: dict[str, Any] = {}
        self._tickets: dict[str, Ticket] = {}
        self._refresh()

    @classmethod
    def of_environment(cls) -> Roster:
        """Open the roster of the server that this process belongs to; raises `ConfigError` if it has none."""
        file = os.environ.get(ROSTER)
        if not file:
            raise ConfigError("this server was not started by `antefix serve`, so it has no prefixes to offer.")
        return cls(Path(file))

    @property
    def base(self) -> str:
        """The base model, as `Prefixes` takes it."""
        return str(self._content["base"])

    @property
    def directory(self) -> Path | None:
        """The one directory whose files may be added while the server runs."""
        return Path(self._content["directory"]) if self._content["directory"] else None

    def tickets(self) -> Mapping[str, Ticket]:
        """Return what is offered now, by name."""
        self._refresh()
        return self._tickets

    def put(self, ticket: Ticket) -> None:
        """Offer a prefix, in place of an earlier one of its name."""
        self._change(lambda entries: entries.update({ticket.name: asdict(ticket)}))

    def remove(self, name: str) -> None:
        """Offer a prefix no more."""
        self._change(lambda entries: entries.pop(name, None))

    def _refresh(self) -> None:
        try:
            _check_own(self._file.parent)
            status = self._file.stat()
            seen = status.st_ino, status.st_mtime_ns
            if seen == self._seen:
                return
            content = json.loads(self._file.read_text(encoding="utf-8"))
        except OSError:
            if self._seen is None:
                raise
            return  # whoever tidies up temporary files has taken it; what was read is still right
        self._content, self._seen = content, seen
        self._tickets = {name: Ticket(**entry) for name, entry in content["prefixes"].items()}

    def _change(self, change: Callable[[dict[str, Any]], object]) -> None:
        self._file.parent.mkdir(mode=0o700, exist_ok=True)
        _check_own(self._file.parent)
        with self._file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two front ends may change it at once
            self._refresh()
            content = copy.deepcopy(self._content)
            change(content["prefixes"])
            write_atomically(self._file, json.dumps(content).encode())
            self._refresh()


def _check_own(folder: Path) -> None:
    """Raise `PermissionError` for a folder that somebody else put where a server's own was tidied away."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(f"'{folder}' is not this server's own any more; start the server anew.")


@contextmanager
def posted_roster(base: str, prefixes: Prefixes, directory: Path | None) -> Iterator[Roster]:
    """Write the roster of a server about to start, and name it in the environment; its file goes with the server."""
    content = {
        "base": base,
        "directory": str(directory.resolve()) if directory else None,
        "prefixes": {name: asdict(ticket) for name, ticket in prefixes.items()},
    }
    with tempfile.TemporaryDirectory(prefix="antefix-serve-") as folder:
        file = Path(folder) / "roster.json"
        write_atomically(file, json.dumps(content).encode())
        os.environ[ROSTER] = str(file)
        yield Roster(file)
