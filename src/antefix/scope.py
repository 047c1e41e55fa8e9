"""`Scope`: what `PrefixBank.use` selects, where it is selected."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from antefix.selection import Selection

# One for all banks, as a context keeps each variable that was ever set in it.
_SELECTED: ContextVar[tuple[tuple[Scope, Selection], ...]] = ContextVar("selected prefixes", default=())


class Scope:
    """The selections of one bank that last for a while, by thread and by task of asyncio; the innermost one counts."""

    def __init__(self) -> None:
        self._of_thread = threading.local()  # torch.compile reads these, and no context variables

    @contextmanager
    def selecting(self, selection: Selection) -> Iterator[None]:
        """Select for as long as the context lasts."""
        own = (self, selection)
        self._set((*_SELECTED.get(), own))
        try:
            yield
        finally:
            # Generators end in any order, so this one need not be the innermost; an equal one may be another's.
            self._set(tuple(one for one in _SELECTED.get() if one is not own))

    @property
    def selections(self) -> tuple[Selection, ...]:
        """What is selected here, the innermost last."""
        if torch.compiler.is_compiling():
            selections: tuple[Selection, ...] = getattr(self._of_thread, "selections", ())
            return selections
        return self._own(_SELECTED.get())

    def _set(self, selected: tuple[tuple[Scope, Selection], ...]) -> None:
        _SELECTED.set(selected)
        self._of_thread.selections = self._own(selected)

    def _own(self, selected: tuple[tuple[Scope, Selection], ...]) -> tuple[Selection, ...]:
        return tuple(selection for scope, selection in selected if scope is self)
