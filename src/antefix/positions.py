"""Where the tokens of a sequence stand once a prefix stands before them: P further back.

One stack of a model (an encoder, a decoder) learns its positions in one of four ways: it takes `position_ids`; it
looks them up itself in a table of embeddings; it adds a bias by distance (T5); or it has none.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from antefix.attention.state import RelativePositions
from antefix.errors import ContextLengthError

_TABLE_NAMES = ("wpe", "position_embeddings", "embed_positions", "position_embedding")


class StackPositions:
    """Shifts the positions of one stack, row by row, for one forward at a time in each thread."""

    def __init__(self, stack: PreTrainedModel) -> None:
        self.stack = stack
        self.takes_ids = "position_ids" in inspect.signature(stack.forward).parameters
        self.table = next(
            (
                m
                for name, m in stack.named_modules()
                if name.rpartition(".")[2] in _TABLE_NAMES and hasattr(m, "weight")
            ),
            None,
        )
        self.bias = next((m for m in stack.modules() if getattr(m, "has_relative_attention_bias", False)), None)
        self._pending = threading.local()
        self._hook = None
        if self.table is not None and not self.takes_ids:
            self._hook = self.table.register_forward_hook(self._look_up_again, with_kwargs=True)

    @property
    def limit(self) -> int | None:
        """How many positions the stack has a learned embedding for; None where it has no table of them."""
        if self.table is None:
            return None
        first = getattr(self.table, "offset", None)
        if first is None:
            first = 0 if self.table.padding_idx is None else cast(int, self.table.padding_idx) + 1
        return cast(Tensor, self.table.weight).shape[0] - cast(int, first)

    def close(self) -> None:
        """Take the stack's hook away."""
        if self._hook is not None:
            self._hook.remove()

    def shift(self, inputs: dict[str, Any], lengths: Sequence[int]) -> RelativePositions | None:
        """Move the tokens of each row back by the length of its prefix; `inputs` are the stack's, by keyword."""
        tokens = inputs.get("inputs_embeds") if inputs.get("input_ids") is None else inputs["input_ids"]
        assert tokens is not None
        offsets = torch.tensor(lengths, device=tokens.device)[:, None]
        given = inputs.get("position_ids") if self.takes_ids else None
        positions = _standing(inputs, tokens, offsets > 0) if given is None else given
        self._check_limit(positions, offsets)
        if self.takes_ids:
            first = self._first_position() if given is None else 0
            inputs["position_ids"] = positions + offsets + first
        elif self._hook is not None:
            self._pending.positions = positions + offsets
        return None if self.bias is None else RelativePositions(positions, self.bias)

    def forget(self) -> None:
        """Drop what a forward that failed halfway left behind."""
        self._pending.positions = None

    def _first_position(self) -> int:
        """Return the number of the first position: RoBERTa counts from after its padding index."""
        if self.table is None or not any(
            hasattr(m, "create_position_ids_from_input_ids") for m in self.stack.modules()
        ):
            return 0
        return cast(int, self.table.padding_idx) + 1

    def _check_limit(self, positions: Tensor, offsets: Tensor) -> None:
        limit = self.limit
        if limit is None or positions.is_meta:
            return
        needed = int((positions + offsets).max()) + 1
        if needed > limit:
            raise ContextLengthError(
                f"prefix and sequence need {needed} positions, but {type(self.stack).__name__} has {limit}; shorten "
                "the sequence or use a shorter prefix."
            )

    def _look_up_again(self, table: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        """Replace the embeddings a stack looked up at its own positions by those at the shifted ones."""
        positions = getattr(self._pending, "positions", None)
        if positions is None:
            return output
        self._pending.positions = None
        weight = cast(Tensor, table.weight)
        return nn.functional.embedding(positions + cast(int, getattr(table, "offset", 0)), weight).to(output.dtype)


def _standing(inputs: dict[str, Any], tokens: Tensor, has_prefix: Tensor) -> Tensor:
    """Return the positions `(batch, token)` that a stack would give its tokens by itself.

    In rows with a prefix, padding on the left does not count: the prefix ends where the first real token stands.
    """
    batch, length = tokens.shape[:2]
    cache = inputs.get("past_key_values")
    past = 0 if cache is None else cache.get_seq_length()
    plain = (torch.arange(length, device=tokens.device) + past).expand(batch, -1)
    mask = inputs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return plain
    counted = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    return torch.where(has_prefix, counted, plain)
