"""The rule of antefix told without antefix: a base model that reads text first, and hides what follows from the text.

A prefix made from text knows nothing of what comes after it, and every later token sees all of it. A base model that
reads `[text; sequence]` under the same two rules must come to the same. So the reference changes nothing but the mask:
what the base hides among the tokens of the text, and among those of the sequence, stays as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

Rule = Callable[[Any, Any, Any, Any], Any]


def register_reference(num_text_tokens: int) -> str:
    """Return an attention implementation for models whose first tokens, on both sides, are a text of their own."""
    name = f"after-{num_text_tokens}"

    def mask(**arguments: Any) -> Tensor | None:
        rule: Rule = arguments.pop("mask_function")
        skip = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        return eager_mask(**arguments | skip, mask_function=_after(num_text_tokens, rule))

    AttentionInterface.register(name, _eager)
    AttentionMaskInterface.register(name, mask)
    return name


def _after(num_text_tokens: int, rule: Rule) -> Rule:
    def mask(batch: Any, head: Any, query: Any, key: Any) -> Any:
        in_text = key < num_text_tokens
        shifted = rule(batch, head, query - num_text_tokens, key - num_text_tokens)
        return torch.where(query < num_text_tokens, in_text & rule(batch, head, query, key), in_text | shifted)

    return mask


def _eager(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Attend as the model's own eager function does."""
    for cls in type(module).__mro__:
        function = getattr(sys.modules[cls.__module__], "eager_attention_forward", None)
        if function is not None:
            return function(module, *args, **kwargs)
    raise NotImplementedError(type(module).__name__)
