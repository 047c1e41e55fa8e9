"""Where the tokens of a sequence stand once a prefix stands before them: P further back.

One stack of a model (an encoder, a decoder) learns its positions in one of four ways: it takes `position_ids`; it
looks them up itself in a table of embeddings; it adds a bias by distance (T5); or it has none. The patches of an image
and the frames of a sound have fixed places, which a prefix leaves alone.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from antefix.attention.state import RelativePositions
from antefix.counting import Counting
from antefix.errors import UnsupportedModelError
from antefix.padding import OuterMask, counted, without_padding
from antefix.sites import reads_tokens


class StackPositions:
    """Shifts the positions of one stack, row by row, for one forward at a time in each thread."""

    def __init__(self, stack: PreTrainedModel, outer: OuterMask | None = None) -> None:
        self.stack = stack
        self.reads_tokens = reads_tokens(stack)
        self._outer = outer
        self._counting = Counting.of(stack, None if outer is None else outer.model)
        self._pending = threading.local()
        self._table = self._counting.table
        self._hooks = []
        if self._table is not None and self.reads_tokens and not self._counting.takes_ids:
            self._hooks = [self._table.module.register_forward_hook(self._look_up_again, with_kwargs=True)]

    @property
    def can_shift(self) -> bool:
        """Whether tokens can be moved, or have no places that would have to be."""
        return self._counting.is_understood or not self.reads_tokens

    @property
    def limit(self) -> int | None:
        """How many positions the stack has an embedding for; None if it has no table of them, or one that grows."""
        return self._table.limit if self._table is not None and self.reads_tokens else None

    def close(self) -> None:
        """Take every hook away."""
        for hook in self._hooks:
            hook.remove()
        if self._outer is not None:
            self._outer.close()

    def shift(self, inputs: dict[str, Any], lengths: Sequence[int]) -> RelativePositions | None:
        """Move the tokens of each row back by the length of its prefix; `inputs` are the stack's, by keyword.

        Raises `ContextLengthError` if the model has too few positions, and `UnsupportedModelError` if it counts
        them in a way that cannot be moved.
        """
        if not self.reads_tokens:
            return None
        tokens = inputs.get("inputs_embeds") if inputs.get("input_ids") is None else inputs["input_ids"]
        if not self.can_shift or (tokens is None and self._table is not None):
            raise UnsupportedModelError(
                f"{type(self.stack).__name__} counts positions in a way that a prefix cannot move; leave its kind out "
                "of PrefixConfig.sites."
            )
        if tokens is None:  # nothing here has a place in a sequence
            return None
        # A number where it will do: a tensor of them is copied to a GPU, which the CPU waits for.
        same = len(set(lengths)) == 1
        offsets: int | Tensor = lengths[0] if same else torch.tensor(lengths, device=tokens.device)[:, None]
        positions, offsets = self._found(inputs, tokens, offsets)
        shifted = self._moved(positions, offsets)
        if self._table is not None:
            self._table.make_room(shifted, self._first, type(self.stack).__name__)
        if self._counting.takes_ids:
            inputs["position_ids"] = shifted
        elif self._table is not None:
            self._pending.positions = shifted
        if self._counting.bias is None or self._counting.bucket is None:
            return None
        return RelativePositions(positions, self._counting.bias, self._counting.bucket)

    def finish(self, succeeded: bool) -> None:
        """End a forward; raises `UnsupportedModelError` if the stack never looked the shifted positions up."""
        unused = getattr(self._pending, "positions", None) is not None
        self._pending.positions = None
        if unused and succeeded:
            table = type(cast(Any, self._table).module).__name__
            raise UnsupportedModelError(
                f"{type(self.stack).__name__} did not look its positions up in '{table}', so a prefix cannot stand "
                "before its tokens; leave its kind out of PrefixConfig.sites."
            )

    @property
    def _first(self) -> int:
        """The first position of those that the stack takes; it counts those that it looks up itself from 0."""
        return self._counting.first_position if self._counting.takes_ids else 0

    def _found(self, inputs: Mapping[str, Any], tokens: Tensor, offsets: int | Tensor) -> tuple[Tensor, int | Tensor]:
        """Return the positions of the tokens before they are moved, and how far each is to move."""
        positions = inputs.get("position_ids") if self._counting.takes_ids else None
        outer = None if self._outer is None else self._outer.take(*tokens.shape[:2])
        if positions is None:
            positions = self._standing(inputs, tokens, outer, offsets > 0) + self._first
            if self._counting.first_position:  # padding that the base tells by its ids stays before the first position
                offsets = offsets * (positions >= self._first)
        elif outer is not None and positions.ndim == 2:
            closed = without_padding(positions, outer, _past(inputs))
            positions = torch.where(offsets > 0, closed, positions) if isinstance(offsets, Tensor) else closed
        return positions, offsets

    def _standing(
        self, inputs: Mapping[str, Any], tokens: Tensor, outer: Tensor | None, has_prefix: bool | Tensor
    ) -> Tensor:
        """Return the positions `(batch, token)` of the tokens before they are moved, counted from 0.

        Rows with a prefix leave out what the mask hides, the stack's own or that of the model around it: the prefix
        ends where the first real token stands. Where `has_prefix` `(batch, 1)` is false, they are those of the bare
        stack.
        """
        batch, length = tokens.shape[:2]
        past = _past(inputs)
        bare = (torch.arange(length, device=tokens.device) + past).expand(batch, -1)
        if self._counting.first_position and inputs.get("input_ids") is not None:
            real = tokens != self._counting.first_position - 1
            bare = (real.cumsum(-1) + past) * real - 1
        mask = inputs.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            mask = outer
        if mask is None:
            return bare
        standing = counted(mask, past, length, self._counting.adds_up_mask or self._counting.first_position > 0)
        if isinstance(has_prefix, bool) or self._counting.adds_up_mask:
            return standing
        return torch.where(has_prefix, standing, bare)

    def _moved(self, positions: Tensor, offsets: int | Tensor) -> Tensor:
        """Return positions moved back, `(batch, token)` or by axis.

        Where a model counts within images, their tokens keep the last three axes, which are column, row and image. A
        token of text stands at the same place on every axis; raises `UnsupportedModelError` if no axis before those
        three tells of each token whether it is one.
        """
        if not self._counting.counts_within_images or positions.ndim < 3:
            return positions + offsets
        of_images = (positions != positions[:1]).any(0)
        if len(positions) == 3 and bool(of_images.any()):
            raise UnsupportedModelError(
                f"{type(self.stack).__name__} tells the tokens of an image by their places within it alone, so a "
                "prefix cannot stand before them; leave its kind out of PrefixConfig.sites."
            )
        axes = torch.arange(len(positions), device=positions.device)[:, None, None]
        return torch.where(of_images & (axes >= len(positions) - 3), positions, positions + offsets)

    def _look_up_again(self, table: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        """Replace the embeddings a stack looked up at its own positions by those at the shifted ones."""
        positions = getattr(self._pending, "positions", None)
        if positions is None or self._table is None:
            return output
        self._pending.positions = None
        return self._table.look_up(positions).to(output.dtype)


def cache_of(inputs: Mapping[str, Any]) -> Cache | None:
    """Return the cache among a stack's inputs, under whatever name this version of Transformers takes it."""
    return next((value for value in inputs.values() if isinstance(value, Cache)), None)


def _past(inputs: Mapping[str, Any]) -> int | Tensor:
    """Return how many tokens the cache among a stack's inputs holds."""
    cache = cache_of(inputs)
    return 0 if cache is None else cast("int | Tensor", cache.get_seq_length())
