"""`Carrier`: how the state of a forward reaches modules that their model passes no keyword on to.

It holds that state for the forward's thread. A checkpointed layer runs again in the backward, perhaps in another thread
and after other forwards; so it remembers the state that its forward saw.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from torch import nn

Held = TypeVar("Held")
_KEPT_UNDER = ("_gradient_checkpointing_func", "checkpoint_fn")
"""Where Transformers' layers, and PyTorch's wrapper around any layer (FSDP's), keep the function that runs it again."""


class Carrier(Generic[Held]):
    """What this thread's forward goes by, and what `otherwise` returns while the thread holds nothing."""

    def __init__(self, otherwise: Callable[[], Held]) -> None:
        self._thread = threading.local()  # as it is: of a subclass, torch.compile would read the wrong attribute
        self._otherwise = otherwise

    @property
    def held(self) -> Held:
        """What the forward that this thread is in goes by."""
        held: Held | None = getattr(self._thread, "held", None)
        return self._otherwise() if held is None else held

    def hold(self, held: Held | None) -> None:
        """Hold this in this thread from now on; None is nothing."""
        self._thread.held = held

    def under_the_same(self, layer: Callable[..., Any]) -> Callable[..., Any]:
        """Return a layer that runs in any thread under what is held in this one now."""
        held = self.held

        def layer_under_the_same(*args: Any, **kwargs: Any) -> Any:
            with self._holding(held):
                return layer(*args, **kwargs)

        return layer_under_the_same

    def enter_checkpoints(self, modules: Iterable[nn.Module]) -> None:
        """Make those modules that are checkpointed now run again under what they ran under."""
        for module, name, checkpoint in _checkpoints(modules):
            if not isinstance(checkpoint, _RememberingCheckpoint):
                setattr(module, name, _RememberingCheckpoint(checkpoint))
            carriers: list[Carrier[Any]] = getattr(module, name).carriers
            if self not in carriers:
                carriers.append(self)

    def leave_checkpoints(self, modules: Iterable[nn.Module]) -> None:
        """Undo `enter_checkpoints`."""
        for module, name, checkpoint in _checkpoints(modules):
            if isinstance(checkpoint, _RememberingCheckpoint) and self in checkpoint.carriers:
                checkpoint.carriers.remove(self)
                if not checkpoint.carriers:
                    setattr(module, name, checkpoint.original)

    @contextmanager
    def _holding(self, held: Held) -> Iterator[None]:
        outer = getattr(self._thread, "held", None)
        self.hold(held)
        try:
            yield
        finally:
            self.hold(outer)


def _checkpoints(modules: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, str, Any]]:
    """Go through the functions that run layers again, each with the module and the name that it is kept under."""
    for module in modules:
        own = vars(module)  # far quicker than getattr, which asks a module for everything that it has not
        yield from ((module, name, own[name]) for name in _KEPT_UNDER if own.get(name) is not None)


class _RememberingCheckpoint:
    """A checkpoint function whose layer runs again under what some carriers held when it ran at first."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self.original = original
        self.carriers: list[Carrier[Any]] = []
        self.keywords = getattr(original, "keywords", {})  # where Transformers keeps `use_reentrant`

    def __call__(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for carrier in self.carriers:
            layer = carrier.under_the_same(layer)
        return self.original(layer, *args, **kwargs)

    def __deepcopy__(self, memo: Any) -> Callable[..., Any]:
        """Let a copied layer remember nothing: it is not of the stack, and nothing in it asks a carrier."""
        return self.original
