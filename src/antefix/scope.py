"""`Scope`: what `PrefixBank.use` selects, where it is selected."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from antefix.stack import Selection


class Scope:
    """The selections of each thread, and of each task of asyncio, that last for a while; the innermost one counts."""

    def __init__(self) -> None:
        self._of_task: ContextVar[tuple[Selection, ...]] = ContextVar("selections of antefix", default=())
        self._of_thread = threading.local()  # torch.compile reads these, and no context variables

    @contextmanager
    def selecting(self, selection: Selection) -> Iterator[None]:
        """Select for as long as the context lasts."""
        outer = self._of_task.get()
        self._set((*outer, selection))
        try:
            yield
        finally:
            self._set(outer)

    @property
    def selections(self) -> tuple[Selection, ...]:
        """What is selected here, the innermost last."""
        if torch.compiler.is_compiling():
            selections: tuple[Selection, ...] = getattr(self._of_thread, "selections", ())
            return selections
        return self._of_task.get()

    def _set(self, selections: tuple[Selection, ...]) -> None:
        self._of_task.set(selections)
        self._of_thread.selections = selections
