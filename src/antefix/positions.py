"""Where the tokens of a sequence stand once a prefix stands before them: P further back.

One stack of a model (an encoder, a decoder) learns its positions in one of four ways: it takes `position_ids`; it
looks them up itself in a table of embeddings; it adds a bias by distance (T5); or it has none. The patches of an image
and the frames of a sound have fixed places, which a prefix leaves alone.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from antefix.attention.state import RelativePositions
from antefix.errors import ContextLengthError, UnsupportedModelError
from antefix.padding import OuterMask, counted, without_padding
from antefix.sites import SEEN_OR_HEARD, reads_tokens

_TABLE_NAMES = ("wpe", "position_embeddings", "embed_positions", "position_embedding")
_WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""By what a layer is called in a configuration: what says there how many tokens it sees."""


class StackPositions:
    """Shifts the positions of one stack, row by row, for one forward at a time in each thread."""

    def __init__(self, stack: PreTrainedModel, outer: OuterMask | None = None) -> None:
        self.stack = stack
        self._outer = outer
        parameters = inspect.signature(stack.forward).parameters
        self.takes_ids = "position_ids" in parameters
        self.reads_tokens = reads_tokens(stack)
        own = list(_own_modules(stack))
        modules = [module for _, module in own]
        tables = [module for name, module in own if name in _TABLE_NAMES]
        self.table = next((m for m in tables if hasattr(m, "weight") or _grows(m)), None)
        has_places = bool(tables) or any(hasattr(m, "inv_freq") for m in modules)
        self._is_understood = (self.takes_ids or self.table is not None or not has_places) and not (
            _biases_by_more_than_places(stack) or any(_compares_positions(type(m).forward) for m in modules)
        )
        self._counts_within_images = outer is not None and _counts_within_images(outer.model)
        biases = [m for m in modules if getattr(m, "has_relative_attention_bias", False)]
        self.bias = biases[0] if biases else None
        self._bucket = None if self.bias is None else _bucket_of(self.bias)
        # RoBERTa counts from after its padding index.
        padding = next((m.padding_idx for m in tables if getattr(m, "padding_idx", None) is not None), None)
        counts_from_ids = any(map(_counts_from_ids, modules))
        self._first_position = cast(int, padding) + 1 if counts_from_ids and padding is not None else 0
        self._counts_from_mask = _adds_up_mask(stack)
        self._pending = threading.local()
        self._replaces_lookup = self.reads_tokens and self.table is not None and not self.takes_ids
        self._hooks = []
        if self.table is not None and self._replaces_lookup:
            self._hooks = [self.table.register_forward_hook(self._look_up_again, with_kwargs=True)]

    @property
    def can_shift(self) -> bool:
        """Whether tokens can be moved, or have no places that would have to be."""
        return self._is_understood or not self.reads_tokens

    @property
    def limit(self) -> int | None:
        """How many positions the stack has an embedding for; None where it has no table of them, or one that grows."""
        if self.table is None or not self.reads_tokens or _grows(self.table):
            return None
        return len(self._rows) - self._first_row

    def close(self) -> None:
        """Take every hook away."""
        for hook in self._hooks:
            hook.remove()
        if self._outer is not None:
            self._outer.close()

    def shift(self, inputs: dict[str, Any], lengths: Sequence[int]) -> RelativePositions | None:
        """Move the tokens of each row back by the length of its prefix; `inputs` are the stack's, by keyword.

        Raises `ContextLengthError` where the model has too few positions, and `UnsupportedModelError` where it counts
        them in a way that cannot be moved.
        """
        if not self.reads_tokens:
            return None
        tokens = inputs.get("inputs_embeds") if inputs.get("input_ids") is None else inputs["input_ids"]
        if not self.can_shift or (tokens is None and self.table is not None):
            raise UnsupportedModelError(
                f"{type(self.stack).__name__} counts positions in a way that a prefix cannot move; leave its kind out "
                "of PrefixConfig.sites."
            )
        if tokens is None:  # nothing here has a place in a sequence
            return None
        # A number where it will do: a tensor of them is copied to a GPU, which the CPU waits for.
        same = len(set(lengths)) == 1
        offsets: int | Tensor = lengths[0] if same else torch.tensor(lengths, device=tokens.device)[:, None]
        first = self._first_position if self.takes_ids else 0
        positions = inputs.get("position_ids") if self.takes_ids else None
        outer = None if self._outer is None else self._outer.take(*tokens.shape[:2])
        if positions is None:
            positions = self._standing(inputs, tokens, outer, offsets > 0) + first
            if self._first_position:  # padding that the base tells by its ids stays before the first position
                offsets = offsets * (positions >= first)
        elif outer is not None and positions.ndim == 2:
            closed = without_padding(positions, outer, _past(inputs))
            positions = torch.where(offsets > 0, closed, positions) if isinstance(offsets, Tensor) else closed
        shifted = self._moved(positions, offsets)
        self._make_room(shifted, first)
        if self.takes_ids:
            inputs["position_ids"] = shifted
        elif self._replaces_lookup:
            self._pending.positions = shifted
        if self.bias is None or self._bucket is None:
            return None
        return RelativePositions(positions, self.bias, self._bucket)

    def finish(self, succeeded: bool) -> None:
        """End a forward; raises `UnsupportedModelError` where the stack never looked the shifted positions up."""
        unused = getattr(self._pending, "positions", None) is not None
        self._pending.positions = None
        if unused and succeeded:
            raise UnsupportedModelError(
                f"{type(self.stack).__name__} did not look its positions up in '{type(self.table).__name__}', so a "
                "prefix cannot stand before its tokens; leave its kind out of PrefixConfig.sites."
            )

    @property
    def _rows(self) -> Tensor:
        """The table's embeddings, one a row; those of one that grows are made anew as it does."""
        return cast(Tensor, self.table.weights if _grows(self.table) else cast(nn.Module, self.table).weight)

    @property
    def _first_row(self) -> int:
        """The row of the table that holds the first position."""
        return self._first_position or cast(int, getattr(self.table, "offset", 0))

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
        if self._first_position and inputs.get("input_ids") is not None:
            real = tokens != self._first_position - 1
            bare = (real.cumsum(-1) + past) * real - 1
        mask = inputs.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            mask = outer
        if mask is None:
            return bare
        standing = counted(mask, past, length, self._counts_from_mask or self._first_position > 0)
        if isinstance(has_prefix, bool) or self._counts_from_mask:
            return standing
        return torch.where(has_prefix, standing, bare)

    def _moved(self, positions: Tensor, offsets: int | Tensor) -> Tensor:
        """Return positions moved back, `(batch, token)` or by axis.

        Where a model counts within images, their tokens keep the last three axes, which are column, row and image. A
        token of text stands at the same place on every axis; raises `UnsupportedModelError` where no axis before those
        three tells of each token whether it is one.
        """
        if not self._counts_within_images or positions.ndim < 3:
            return positions + offsets
        of_images = (positions != positions[:1]).any(0)
        if len(positions) == 3 and bool(of_images.any()):
            raise UnsupportedModelError(
                f"{type(self.stack).__name__} tells the tokens of an image by their places within it alone, so a "
                "prefix cannot stand before them; leave its kind out of PrefixConfig.sites."
            )
        axes = torch.arange(len(positions), device=positions.device)[:, None, None]
        return torch.where(of_images & (axes >= len(positions) - 3), positions, positions + offsets)

    def _make_room(self, positions: Tensor, first: int) -> None:
        """Let a table that grows do so; raises `ContextLengthError` where any other is too short."""
        if self.table is None or positions.is_meta or torch.compiler.is_compiling():
            return
        needed, limit = int(positions.max()) + 1 - first, len(self._rows) - self._first_row
        if needed <= limit:
            return
        if _grows(self.table):
            table = cast(Any, self.table)
            table.make_weights(needed + self._first_row, table.embedding_dim, table.padding_idx)
            return
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
        return nn.functional.embedding(positions + self._first_row, self._rows).to(output.dtype)


def _own_modules(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Go through the modules of a stack, each with its own name, but not into models and towers inside of it.

    Those have places of their own, such as patches of an image.
    """
    yield name, module
    for child_name, child in module.named_children():
        parameters = inspect.signature(child.forward).parameters
        is_tower = not SEEN_OR_HEARD.isdisjoint(parameters) and not reads_tokens(child)
        if not is_tower and not isinstance(child, PreTrainedModel):
            yield from _own_modules(child, child_name)


def _compares_positions(forward: Callable[..., Any]) -> bool:
    """Return whether a module's code divides or compares positions, which moving them would change the meaning of.

    Blocks of compressed keys find by that what lies in the past, and recurrent states where a text begins.
    """
    return re.search(r"position_ids(\[[^\]\n]*\])?( \+ 1\))? (//|==) ", _source_of(forward)) is not None


def _biases_by_more_than_places(stack: nn.Module) -> bool:
    """Return whether a stack makes the bias that its layers add itself, as one that looks at boxes on a page does."""
    makes = re.search(r"position_bias = self\.\w+\(", _source_of(type(stack).forward))
    return makes is not None and not getattr(stack, "is_decoder", False)


def _counts_within_images(model: nn.Module) -> bool:
    """Return whether a model counts the rows and columns of an image from 0, wherever in the text it stands."""
    places = getattr(model, "get_vision_position_ids", None)
    return places is not None and "start_position" not in inspect.signature(places).parameters


@functools.cache
def _source_of(forward: Callable[..., Any]) -> str:
    try:
        return inspect.getsource(forward)
    except (OSError, TypeError):  # made without a file
        return ""


def _adds_up_mask(stack: nn.Module) -> bool:
    """Return whether a stack that is given no positions counts what its mask shows, as OPT does."""
    return re.search(r"cumsum\(\w*attention_mask", _source_of(type(stack).forward)) is not None


def _counts_from_ids(module: nn.Module) -> bool:
    """Return whether Transformers gives this module, or the file that it stands in, a function for that."""
    name = "create_position_ids_from_input_ids"
    return hasattr(module, name) or hasattr(sys.modules.get(type(module).__module__), name)


def _grows(table: nn.Module | None) -> TypeGuard[nn.Module]:
    """Return whether a table computes as many rows as it is asked for, and counts from ids, as M2M100's does."""
    return hasattr(table, "make_weights") and hasattr(table, "create_position_ids_from_input_ids")


def _bucket_of(attention: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what turns distances into buckets: T5's is told its settings, UMT5's knows them."""
    bucket = cast(Any, attention)._relative_position_bucket
    if "bidirectional" not in inspect.signature(bucket).parameters:
        return cast(Callable[[Tensor], Tensor], bucket)
    return functools.partial(
        bucket,
        bidirectional=not attention.is_decoder,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )


def cache_of(inputs: Mapping[str, Any]) -> Cache | None:
    """Return the cache among a stack's inputs, under whatever name this version of Transformers takes it."""
    return next((value for value in inputs.values() if isinstance(value, Cache)), None)


def _past(inputs: Mapping[str, Any]) -> int | Tensor:
    """Return how many tokens the cache among a stack's inputs holds."""
    cache = cache_of(inputs)
    return 0 if cache is None else cast("int | Tensor", cache.get_seq_length())


def attention_window(config: Any) -> int | None:
    """Return how many tokens a model's windows or chunks hold at least, by its text config; None where all see all."""
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    sizes: list[int | None] = [getattr(config, name, None) for kind, name in _WINDOWS.items() if kind in kinds]
    return min((size for size in sizes if size is not None), default=None)
