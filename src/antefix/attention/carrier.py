"""`Carrier`: how prefixes reach attention modules to which their model passes no keyword on.

It holds the prefixes of the forward that this thread is in. A checkpointed layer runs again in the backward, perhaps in
another thread and after other forwards; so it is made to remember the prefixes that it ran under.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import nn

from antefix.attention.state import ForwardPrefixes


class Carrier:
    """The prefixes of one stack's forward in this thread, for those of its sites that a keyword does not reach."""

    def __init__(self) -> None:
        self._held = threading.local()  # as it is: of a subclass, torch.compile would read the wrong attribute

    @property
    def prefixes(self) -> ForwardPrefixes | None:
        """The prefixes of the forward that this thread is in, None outside of one."""
        return getattr(self._held, "prefixes", None)

    @prefixes.setter
    def prefixes(self, prefixes: ForwardPrefixes | None) -> None:
        self._held.prefixes = prefixes

    @contextmanager
    def holding(self, prefixes: ForwardPrefixes | None) -> Iterator[None]:
        """Hold these prefixes for as long as the context lasts."""
        outer, self.prefixes = self.prefixes, prefixes
        try:
            yield
        finally:
            self.prefixes = outer

    def enter_checkpoints(self, stack: nn.Module) -> None:
        """Make the layers of a stack that are checkpointed now remember the prefixes they run under."""
        for module in stack.modules():
            checkpoint = getattr(module, "_gradient_checkpointing_func", None)
            if checkpoint is not None and not isinstance(checkpoint, _RememberingCheckpoint):
                cast(Any, module)._gradient_checkpointing_func = _RememberingCheckpoint(checkpoint, self)

    def leave_checkpoints(self, stack: nn.Module) -> None:
        """Undo `enter_checkpoints`."""
        for module in stack.modules():
            checkpoint = getattr(module, "_gradient_checkpointing_func", None)
            if isinstance(checkpoint, _RememberingCheckpoint):
                cast(Any, module)._gradient_checkpointing_func = checkpoint.original


class _RememberingCheckpoint:
    """A checkpoint function whose layer runs again under the prefixes that it ran under at first."""

    def __init__(self, original: Callable[..., Any], carrier: Carrier) -> None:
        self.original = original
        self.carrier = carrier
        self.keywords = getattr(original, "keywords", {})  # where Transformers keeps `use_reentrant`

    def __call__(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        prefixes = self.carrier.prefixes

        def layer_under_prefixes(*inputs: Any, **keywords: Any) -> Any:
            with self.carrier.holding(prefixes):
                return layer(*inputs, **keywords)

        return self.original(layer_under_prefixes, *args, **kwargs)
