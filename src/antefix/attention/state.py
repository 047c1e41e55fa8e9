"""`ForwardPrefixes`: what travels down one forward of one stack, as a keyword, to each of its attention modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from antefix.attention.flex import BlockMasks
from antefix.errors import UnsupportedModelError
from antefix.shapes import Float, Int

Pairs: TypeAlias = "dict[str, tuple[Tensor, Tensor]]"
"""Keys and values `(kv_head, token, dim)` by site path."""


@dataclass(frozen=True, eq=False)
class KeysAndValues:
    """Keys and values of one prefix, in the device and dtype of each attention that reads them."""

    pairs: Pairs
    _brought: dict[tuple[str, torch.device, torch.dtype], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def at(self, path: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return key and value of a site; those of a frozen prefix are brought to a place once, from what was loaded.

        To convert what was converted before would keep its rounding.
        """
        key, value = self.pairs[path]
        if key.dtype == value.dtype == like.dtype and key.device == value.device == like.device:
            return key, value
        place = (path, like.device, like.dtype)
        if key.requires_grad or (torch.compiler.is_compiling() and place not in self._brought):
            return key.to(like.device, like.dtype), value.to(like.device, like.dtype)
        if place not in self._brought:
            with torch.inference_mode(False):  # what is kept may be of use to a training step, too
                self._brought[place] = key.to(like.device, like.dtype), value.to(like.device, like.dtype)
        return self._brought[place]


@dataclass(frozen=True, eq=False)
class ForwardPrefixes:
    """The prefixes of one forward, by site path, and which of them each row of the batch uses.

    `prefix_indices` has the index of a prefix for each row, -1 for none; each prefix has a row. `relative_positions`
    tells where the queries stand, for models with a learned bias by distance; `laid_together` is where prefixes may be
    laid together, `block_masks` the masks of FlexAttention.
    """

    prefixes: tuple[KeysAndValues, ...] = ()
    prefix_indices: tuple[int, ...] = ()
    relative_positions: RelativePositions | None = None
    laid_together: LaidTogether | None = None
    block_masks: BlockMasks = field(default_factory=dict)

    def shared_at(self, path: str, like: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Sequence[int]] | None:
        """Return keys and values `(kv_head, token, dim)` of a site, each prefix once, and which one each row uses.

        Rows that use none have -1. None where no row has a prefix at this site. Raises `UnsupportedModelError` where
        rows differ in their prefixes, but are not the rows of the attention.
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
        return pairs, indices


@dataclass(frozen=True, eq=False)
class LaidTogether:
    """Keys and values of several prefixes `(prefix, kv_head, token, dim)`, by site path, laid where they are wanted."""

    prefixes: tuple[KeysAndValues, ...]
    _laid: Pairs = field(default_factory=dict)

    def at(self, path: str, pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return those of a site, where the prefixes have these and all of one shape."""
        if path not in self._laid:
            with torch.inference_mode(False):
                keys, values = zip(*pairs, strict=True)
                self._laid[path] = torch.stack(keys), torch.stack(values)
        return self._laid[path]


@dataclass(frozen=True, eq=False)
class RelativePositions:
    """Where queries stand, counted from the first real token of their row, and who turns distances into a bias."""

    queries: Int[Tensor, "batch query"]
    attention: nn.Module
    """The first attention module of its stack that holds a bias, which those without one go by, as in T5."""
    bucket: Callable[[Tensor], Tensor]
    """What turns distances into rows of a bias."""

    def bias(self, num_virtual_tokens: int, module: nn.Module) -> Float[Tensor, "batch head query token"]:
        """Return a module's bias of the queries towards prefix tokens, which stand at -num_virtual_tokens to -1."""
        tokens = torch.arange(-num_virtual_tokens, 0, device=self.queries.device)
        attention = module if hasattr(module, "relative_attention_bias") else self.attention
        bias: Tensor = attention.relative_attention_bias(  # type: ignore[operator]
            self.bucket(tokens - self.queries[..., None])
        )
        return bias.movedim(-1, 1)


NO_PREFIXES = ForwardPrefixes()
"""Sent when no prefix is active, so that its absence at a site always means that something went wrong."""


def _indices_for_batch(prefix_indices: Sequence[int], path: str, batch: int) -> Sequence[int]:
    """Return the indices for the rows that the attention sees; a tower may see other rows than its model."""
    if len(set(prefix_indices)) == 1:
        return [prefix_indices[0]] * batch
    raise UnsupportedModelError(
        f"the attention at '{path}' gets {batch} rows of a batch of {len(prefix_indices)}, so it cannot tell whose "
        "prefix is whose; use one prefix for all rows."
    )


def for_each_row(
    pairs: Sequence[tuple[Tensor, Tensor]], prefix_indices: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return keys and values `(batch, kv_head, token, dim)` of what `shared_at` returns, and which tokens are real.

    The last is a boolean `(batch, token)`, or None where all are. Shorter prefixes are padded in front, so that each
    ends where its row's sequence begins.
    """
    if set(prefix_indices) == {0}:
        key, value = (part[None].expand(len(prefix_indices), -1, -1, -1) for part in pairs[0])
        return key, value, None
    return _padded([pairs[index] if index >= 0 else None for index in prefix_indices])


def _padded(rows: Sequence[tuple[Tensor, Tensor] | None]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Stack prefixes of different lengths, with zeros in front of the shorter ones."""
    given = next(row for row in rows if row is not None)
    lengths = [0 if row is None else row[0].shape[1] for row in rows]
    longest = max(lengths)

    def pad(part: int) -> Tensor:
        heads, _, dim = given[part].shape
        tensors = [given[part].new_zeros(heads, 0, dim) if row is None else row[part] for row in rows]
        padded = [nn.functional.pad(t, (0, 0, longest - t.shape[1], 0)) for t in tensors]
        return torch.stack(padded)

    if min(lengths) == longest:
        return pad(0), pad(1), None
    tokens = torch.arange(longest, device=given[0].device)
    real = tokens >= longest - torch.tensor(lengths, device=given[0].device)[:, None]
    return pad(0), pad(1), real
