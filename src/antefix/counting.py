"""How a stack of a model counts the positions of its tokens, as its modules and its code tell."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from antefix.position_table import PositionTable, grows
from antefix.sites import SEEN_OR_HEARD, reads_tokens

_TABLE_NAMES = ("wpe", "position_embeddings", "embed_positions", "position_embedding")


@dataclass(frozen=True)
class Counting:
    """Whether a stack takes `position_ids`, looks positions up in a `table`, or adds a `bias` by distance.

    `bucket` turns distances into rows of that bias. A stack that pads by ids has its `first_position` after the padding
    index; one that adds up its mask counts shown tokens alone. Positions `is_understood` says whether moving them moves
    tokens and changes nothing else.
    """

    takes_ids: bool
    table: PositionTable | None
    bias: nn.Module | None
    bucket: Callable[[Tensor], Tensor] | None
    first_position: int
    adds_up_mask: bool
    counts_within_images: bool
    is_understood: bool

    @classmethod
    def of(cls, stack: PreTrainedModel, outer: nn.Module | None) -> Counting:
        """Read it off a stack, and off the model around it, if there is one."""
        takes_ids = "position_ids" in inspect.signature(stack.forward).parameters
        own = list(_own_modules(stack))
        modules = [module for _, module in own]
        tables = [module for name, module in own if name in _TABLE_NAMES]
        looked_up = next((m for m in tables if hasattr(m, "weight") or grows(m)), None)
        bias = next((m for m in modules if getattr(m, "has_relative_attention_bias", False)), None)
        has_places = bool(tables) or any(hasattr(m, "inv_freq") for m in modules)
        is_more_than_place = _biases_by_more_than_places(stack) or any(
            _compares_positions(type(m).forward) for m in modules
        )
        # RoBERTa counts from after its padding index.
        padding = next((m.padding_idx for m in tables if getattr(m, "padding_idx", None) is not None), None)
        first = cast(int, padding) + 1 if padding is not None and any(map(_counts_from_ids, modules)) else 0
        return cls(
            takes_ids,
            None if looked_up is None else PositionTable(looked_up, first),
            bias,
            None if bias is None else _bucket_of(bias),
            first,
            _adds_up_mask(stack),
            outer is not None and _counts_within_images(outer),
            is_understood=(takes_ids or looked_up is not None or not has_places) and not is_more_than_place,
        )


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
