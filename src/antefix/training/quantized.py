"""Training on a quantised base, which Trainer and TRL allow only for adapters of PEFT."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def in_their_dtypes(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Keep the dtypes of parameters, as TRL casts whatever is trainable on a quantised base."""
    kept = [(parameter, parameter.data) for module in modules for parameter in module.parameters()]
    yield
    for parameter, data in kept:
        if parameter.dtype != data.dtype:
            parameter.data = data.to(parameter.device)


@contextmanager
def trainable_although_quantized(model: Any) -> Iterator[None]:
    """Let Trainer take a quantised base, which it refuses unless adapters of PEFT are trained; a prefix is trained."""
    loaded = getattr(model, "_hf_peft_config_loaded", None)
    if loaded is None or not getattr(model, "is_quantized", False):
        yield
        return
    model._hf_peft_config_loaded = True
    try:
        yield
    finally:
        model._hf_peft_config_loaded = loaded
