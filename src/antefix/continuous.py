"""Transformers' continuous batching, whose pages no prefix can stand beside: it is refused where it is asked for.

It runs in a thread of its own, which knows nothing of what its caller uses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from antefix.errors import UnsupportedModelError

_METHOD = "init_continuous_batching"
"""What `generate_batch` and all other ways in call."""


def refuse_continuous_batching(model: PreTrainedModel, uses_prefixes: Callable[[], bool]) -> Callable[[], None]:
    """Let a model refuse to begin with it wherever prefixes are in use; return what takes the refusal back."""
    begin: Callable[..., Any] | None = getattr(model, _METHOD, None)
    if begin is None:
        return lambda: None

    def begin_bare(*args: Any, **kwargs: Any) -> Any:
        if uses_prefixes():
            raise refusal()
        return begin(*args, **kwargs)

    vars(model)[_METHOD] = begin_bare
    return lambda: vars(model).pop(_METHOD, None)


def refusal() -> UnsupportedModelError:
    """Return the error that says what to do instead."""
    return UnsupportedModelError(
        "generate_batch keeps keys and values in pages, beside which no prefix can stand; generate takes batches "
        "of any prefixes, and antefix serve batches as it goes."
    )
