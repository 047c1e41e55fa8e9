"""Losses that leave out a trained output layer.

TRL's trainers and Liger's kernels fuse the output layer with the loss: they read its weight and never call it. A
prefix's copy of that layer computes by being called in its place, so it would silently not be trained.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from antefix.errors import ConfigError


@contextmanager
def calling_output_heads(model: PreTrainedModel, heads: Mapping[str, nn.Module]) -> Iterator[None]:
    """Compute a loss within; raises `ConfigError` if it did not call those heads that make the model's output.

    `heads` are modules by path. Others may have no part in a batch, as a projector of images has none in text.
    """
    called: set[str] = set()

    def note(path: str, *_: Any) -> None:
        called.add(path)

    expected = {path: head for path, head in heads.items() if _makes_output(model, path)}
    with ExitStack() as hooks:
        for path, head in expected.items():
            hooks.enter_context(head.register_forward_pre_hook(functools.partial(note, path)))
        yield
    for path in expected:
        if path not in called:
            raise ConfigError(
                f"the loss is computed from the weight of the base's output layer without calling the '{path}' that is "
                "trained beside the prefix, so that would not be trained; leave it out of trainable_modules, or train "
                "with a trainer that does not fuse the output layer with the loss, such as PrefixTrainer by itself."
            )


def _makes_output(model: PreTrainedModel, path: str) -> bool:
    """Return whether a module of the model is its output layer, lies in it or around it."""
    output, module = model.get_output_embeddings(), model.get_submodule(path)
    if output is None:
        return False
    return any(part is output for part in module.modules()) or any(part is module for part in output.modules())
