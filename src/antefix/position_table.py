"""`PositionTable`: the embeddings of positions that a stack of a model looks up itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from antefix.errors import ContextLengthError


class PositionTable:
    """A module of embeddings, one per row, from the row of the first position on; some grow as they are asked for more.

    A stack that pads by ids has its `first_position` behind the padding; OPT's and BART's tables have an `offset`.
    """

    def __init__(self, module: nn.Module, first_position: int) -> None:
        self.module: Any = module
        self._first_row: int = first_position or getattr(module, "offset", 0)

    @property
    def limit(self) -> int | None:
        """How many positions it has an embedding for; None if it grows."""
        return None if grows(self.module) else self._num_positions

    def make_room(self, positions: Tensor, first: int, name: str) -> None:
        """Let it grow to hold positions that count from `first`; raises `ContextLengthError` if it is too short."""
        if positions.is_meta or torch.compiler.is_compiling():
            return
        needed = int(positions.max()) + 1 - first
        if needed <= self._num_positions:
            return
        if not grows(self.module):
            raise ContextLengthError(
                f"prefix and sequence need {needed} positions, but {name} has {self._num_positions}; shorten the "
                "sequence or use a shorter prefix."
            )
        self.module.make_weights(needed + self._first_row, self.module.embedding_dim, self.module.padding_idx)

    def look_up(self, positions: Tensor) -> Tensor:
        """Return the embeddings of positions that count from 0."""
        return nn.functional.embedding(positions + self._first_row, self._rows)

    @property
    def _rows(self) -> Tensor:
        rows: Tensor = self.module.weights if grows(self.module) else self.module.weight
        return rows

    @property
    def _num_positions(self) -> int:
        return len(self._rows) - self._first_row


def grows(table: nn.Module | None) -> bool:
    """Return whether a table computes as many rows as it is asked for, and counts from ids, as M2M100's does."""
    return hasattr(table, "make_weights") and hasattr(table, "create_position_ids_from_input_ids")
