"""`Carrier`: how the state of a forward reaches modules to which their model passes no keyword on.

It holds that state for the forward's thread. A checkpointed layer runs again in the backward pass, perhaps in another
thread and after other forwards, so it remembers the state that its forward saw.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from torch import nn

Held = TypeVar("Held")
_CHECKPOINT_ATTRIBUTES = ("_gradient_checkpointing_func", "checkpoint_fn")
"""Where Transformers' layers, and PyTorch's wrapper around any layer (as FSDP uses), keep what runs them again."""


class Carrier(Generic[Held]):
    """The state of this thread's forward, or what `default` returns while the thread holds none."""

    def __init__(self, default: Callable[[], Held]) -> None:
        self._thread = threading.local()  # not a subclass, of which torch.compile would read the wrong attribute
        self._default = default

    @property
    def held(self) -> Held:
        """The state of the forward that this thread is in."""
        held: Held | None = getattr(self._thread, "held", None)
        return self._default() if held is None else held

    def hold(self, held: Held | None) -> None:
        """Hold this in this thread from now on, or nothing if it is None."""
        self._thread.held = held

    def bind(self, layer: Callable[..., Any]) -> Callable[..., Any]:
        """Return a layer that runs in any thread with the state that this thread holds now."""
        held = self.held

        def bound_layer(*args: Any, **kwargs: Any) -> Any:
            with self.holding(held):
                return layer(*args, **kwargs)

        return bound_layer

    def enter_checkpoints(self, modules: Iterable[nn.Module]) -> None:
        """Make modules that are checkpointed run again with the state of their first run."""
        for module, name, checkpoint in checkpoints(modules):
            if not isinstance(checkpoint, _RememberingCheckpoint):
                setattr(module, name, _RememberingCheckpoint(checkpoint))
            carriers: list[Carrier[Any]] = getattr(module, name).carriers
            if self not in carriers:
                carriers.append(self)

    def leave_checkpoints(self, modules: Iterable[nn.Module]) -> None:
        """Undo `enter_checkpoints`."""
        for module, name, checkpoint in checkpoints(modules):
            if isinstance(checkpoint, _RememberingCheckpoint) and self in checkpoint.carriers:
                checkpoint.carriers.remove(self)
                if not checkpoint.carriers:
                    setattr(module, name, checkpoint.original)

    @contextmanager
    def holding(self, held: Held) -> Iterator[None]:
        """Hold this in this thread for as long as the context lasts."""
        outer = getattr(self._thread, "held", None)
        self.hold(held)
        try:
            yield
        finally:
            self.hold(outer)


def checkpoints(modules: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, str, Any]]:
    """Yield each function that runs a layer again, with the module and the attribute that keep it."""
    for module in modules:
        attributes = vars(module)  # far quicker than getattr, which searches a module for what it does not have
        names = (name for name in _CHECKPOINT_ATTRIBUTES if attributes.get(name) is not None)
        yield from ((module, name, attributes[name]) for name in names)


class _RememberingCheckpoint:
    """A checkpoint function whose layer runs again with the state that some carriers held in its first run."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self.original = original
        self.carriers: list[Carrier[Any]] = []
        self.keywords = getattr(original, "keywords", {})  # in which Transformers keeps `use_reentrant`

    def __call__(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for carrier in self.carriers:
            layer = carrier.bind(layer)
        return self.original(layer, *args, **kwargs)

    def __deepcopy__(self, memo: Any) -> Callable[..., Any]:
        """Let a copied layer remember nothing: it is no part of the stack, and nothing in it asks a carrier."""
        return self.original
