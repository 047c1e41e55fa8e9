"""`ForwardPrefixes`: what travels down one forward of one stack, as a keyword, to each of its attention modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from antefix.errors import UnsupportedModelError
from antefix.shapes import Float, Int

KeysAndValues = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class ForwardPrefixes:
    """The prefixes of one forward, by site path, and which of them each row of the batch uses.

    `rows` numbers a prefix for each row, -1 for none; an empty `rows` means that no row has one. `relative_positions`
    tells where the queries stand, for models with a learned bias by distance.
    """

    prefixes: tuple[KeysAndValues, ...] = ()
    rows: tuple[int, ...] = ()
    relative_positions: RelativePositions | None = None

    def at(self, path: str, like: Tensor) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """Return keys and values `(batch, kv_head, token, dim)` of a site, and which tokens are real for each row.

        The last is a boolean `(batch, token)`, or None where all are. Shorter prefixes are padded in front, so that
        each ends where its row's sequence begins. None where no row has a prefix at this site.

        Raises `UnsupportedModelError` where rows differ in their prefixes, but are not the rows of the attention.
        """
        chosen = [prefix.get(path) for prefix in self.prefixes]
        if not self.rows or all(row < 0 or chosen[row] is None for row in self.rows):
            return None
        first, batch = chosen[self.rows[0]], like.shape[0]
        if first is not None and len(set(self.rows)) == 1:
            key, value = (part.to(like.device, like.dtype)[None].expand(batch, -1, -1, -1) for part in first)
            return key, value, None
        if len(self.rows) != batch:
            raise UnsupportedModelError(
                f"the attention at '{path}' gets {batch} rows of a batch of {len(self.rows)}, so it cannot tell whose "
                "prefix is whose; use one prefix for all rows."
            )
        return _padded([chosen[row] if row >= 0 else None for row in self.rows], like)


@dataclass(frozen=True, eq=False)
class RelativePositions:
    """Where queries stand, counted from the first real token of their row, and who turns distances into a bias."""

    queries: Int[Tensor, "batch query"]
    attention: nn.Module
    """The attention module that holds the bias of its stack, with T5's `_relative_position_bucket`."""

    def bias(self, num_virtual_tokens: int) -> Float[Tensor, "batch head query token"]:
        """Return the bias of the queries towards prefix tokens, which stand at -num_virtual_tokens to -1."""
        tokens = torch.arange(-num_virtual_tokens, 0, device=self.queries.device)
        attention = self.attention
        buckets = attention._relative_position_bucket(  # type: ignore[operator]
            tokens - self.queries[..., None],
            bidirectional=not attention.is_decoder,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=attention.relative_attention_max_distance,
        )
        bias: Tensor = attention.relative_attention_bias(buckets)  # type: ignore[operator]
        return bias.movedim(-1, 1)


NO_PREFIXES = ForwardPrefixes()
"""Sent when no prefix is active, so that its absence at a site always means that something went wrong."""


def _padded(rows: Sequence[tuple[Tensor, Tensor] | None], like: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Stack prefixes of different lengths, with zeros in front of the shorter ones."""
    given = next(row for row in rows if row is not None)
    lengths = [0 if row is None else row[0].shape[1] for row in rows]
    longest = max(lengths)

    def pad(part: int) -> Tensor:
        heads, _, dim = given[part].shape
        tensors = [given[part].new_zeros(heads, 0, dim) if row is None else row[part] for row in rows]
        padded = [nn.functional.pad(t, (0, 0, longest - t.shape[1], 0)) for t in tensors]
        return torch.stack(padded).to(like.device, like.dtype)

    if min(lengths) == longest:
        return pad(0), pad(1), None
    tokens = torch.arange(longest, device=like.device)
    real = tokens >= longest - torch.tensor(lengths, device=like.device)[:, None]
    return pad(0), pad(1), real
