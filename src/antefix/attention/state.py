"""`ForwardPrefixes`: what travels down one forward of one stack, as a keyword, to each of its attention modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from antefix.attention.flex import BlockMasks
from antefix.errors import UnsupportedModelError
from antefix.shapes import Float, Int

Pairs: TypeAlias = "dict[str, tuple[Tensor, Tensor]]"
"""Keys and values `(kv_head, token, dim)` by site path."""


@dataclass(frozen=True, eq=False)
class KeysAndValues:
    """Keys and values of one prefix, on the device and in the dtype of each attention that reads them."""

    pairs: Pairs
    _converted: dict[tuple[str, torch.device, torch.dtype], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def at(self, path: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return key and value of a site; those of a frozen prefix are converted once, always from what was loaded.

        Converting what was converted before would keep its rounding.
        """
        key, value = self.pairs[path]
        if key.dtype == value.dtype == like.dtype and key.device == value.device == like.device:
            return key, value
        place = (path, like.device, like.dtype)
        if key.requires_grad or (torch.compiler.is_compiling() and place not in self._converted):
            return key.to(like.device, like.dtype), value.to(like.device, like.dtype)
        if place not in self._converted:
            with torch.inference_mode(False):  # a training step may use what is kept, too
                self._converted[place] = key.to(like.device, like.dtype), value.to(like.device, like.dtype)
        return self._converted[place]


class SitePrefixes(NamedTuple):
    """The prefixes at one site: keys and values `(kv_head, token, dim)` of each, and each row's index, -1 for none."""

    pairs: list[tuple[Tensor, Tensor]]
    prefix_indices: Sequence[int]


@dataclass(frozen=True, eq=False)
class ForwardPrefixes:
    """The prefixes of one forward, by site path, and which of them each row of the batch uses.

    `prefix_indices` has the index of a prefix for each row, -1 for none; each prefix has a row. `relative_positions`
    tells where the queries stand, for models with a learned bias by distance; `laid_together` has the prefixes side by
    side if they may be, `block_masks` the masks of FlexAttention.
    """

    prefixes: tuple[KeysAndValues, ...] = ()
    prefix_indices: tuple[int, ...] = ()
    relative_positions: RelativePositions | None = None
    laid_together: LaidTogether | None = None
    block_masks: BlockMasks = field(default_factory=dict)

    def at(self, path: str, like: Tensor) -> SitePrefixes | None:
        """Return the prefixes at a site, for the rows, device and dtype of `like`; None if there are none.

        Raises `UnsupportedModelError` if rows differ in their prefixes, but are not the rows of the attention.
        """
        present = [index for index, prefix in enumerate(self.prefixes) if path in prefix.pairs]
        if not present:
            return None
        pairs = [self.prefixes[index].at(path, like) for index in present]
        indices: Sequence[int] = self.prefix_indices
        if len(present) < len(self.prefixes):
            indices = tuple(present.index(index) if index in present else -1 for index in indices)
        if len(indices) != like.shape[0]:
            indices = _indices_for_batch(indices, path, like.shape[0])
        return SitePrefixes(pairs, indices)


@dataclass(frozen=True, eq=False)
class LaidTogether:
    """Keys and values of several prefixes `(prefix, kv_head, token, dim)`, by site path, made on demand."""

    prefixes: tuple[KeysAndValues, ...]
    _by_place: dict[tuple[str, torch.device, torch.dtype], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def at(self, path: str, pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return those of a site, whose `pairs` all have one shape."""
        place = (path, pairs[0][0].device, pairs[0][0].dtype)
        if place not in self._by_place:
            with torch.inference_mode(False):
                keys, values = zip(*pairs, strict=True)
                self._by_place[place] = torch.stack(keys), torch.stack(values)
        return self._by_place[place]


@dataclass(frozen=True, eq=False)
class RelativePositions:
    """Where queries stand, counted from the first real token of their row, and what turns distances into a bias."""

    queries: Int[Tensor, "batch query"]
    attention: nn.Module
    """The first attention module of its stack that holds a bias, which those without one use, as in T5."""
    bucket: Callable[[Tensor], Tensor]
    """Turns distances into rows of the bias table."""

    def bias(self, num_virtual_tokens: int, module: nn.Module) -> Float[Tensor, "batch head query token"]:
        """Return a module's bias for the prefix tokens, which stand at positions -num_virtual_tokens to -1."""
        tokens = torch.arange(-num_virtual_tokens, 0, device=self.queries.device)
        attention = module if hasattr(module, "relative_attention_bias") else self.attention
        bias: Tensor = attention.relative_attention_bias(  # type: ignore[operator]
            self.bucket(tokens - self.queries[..., None])
        )
        return bias.movedim(-1, 1)


NO_PREFIXES = ForwardPrefixes()
"""Sent if no prefix is active, so that a site that gets nothing always means that something went wrong."""


def _indices_for_batch(prefix_indices: Sequence[int], path: str, batch: int) -> Sequence[int]:
    """Return the indices for the rows that the attention sees; a tower may see other rows than its model."""
    if len(set(prefix_indices)) == 1:
        return [prefix_indices[0]] * batch
    raise UnsupportedModelError(
        f"the attention at '{path}' gets {batch} rows of a batch of {len(prefix_indices)}, so it cannot tell whose "
        "prefix is whose; use one prefix for all rows."
    )


def expand_to_rows(prefixes: SitePrefixes) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return each row's keys and values `(batch, kv_head, token, dim)`, and a mask `(batch, token)`, False for padding.

    Shorter prefixes are padded in front, so that each ends where its row's sequence begins. The mask is None if there
    is no padding.
    """
    pairs, prefix_indices = prefixes
    if set(prefix_indices) == {0}:
        key, value = (tensor[None].expand(len(prefix_indices), -1, -1, -1) for tensor in pairs[0])
        return key, value, None
    return _pad_and_stack([pairs[index] if index >= 0 else None for index in prefix_indices])


def _pad_and_stack(pair_by_row: Sequence[tuple[Tensor, Tensor] | None]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Stack prefixes of different lengths, with zeros in front of the shorter ones."""
    some = next(pair for pair in pair_by_row if pair is not None)
    lengths = [0 if pair is None else pair[0].shape[1] for pair in pair_by_row]
    longest = max(lengths)

    def stack(part: int) -> Tensor:
        heads, _, dim = some[part].shape
        tensors = [some[part].new_zeros(heads, 0, dim) if pair is None else pair[part] for pair in pair_by_row]
        return torch.stack([nn.functional.pad(t, (0, 0, longest - t.shape[1], 0)) for t in tensors])

    if min(lengths) == longest:
        return stack(0), stack(1), None
    tokens = torch.arange(longest, device=some[0].device)
    prefix_mask = tokens >= longest - torch.tensor(lengths, device=some[0].device)[:, None]
    return stack(0), stack(1), prefix_mask
