"""Batches whose rows belong to several systems, each row with its system's prefix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from antefix.bank import PrefixBank

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class MixedBatches:
    """Runs the items of several systems together; `prefixes` has the name of each system's prefix, or None."""

    bank: PrefixBank
    prefixes: Sequence[str | None]
    batch_size: int

    def run(
        self,
        items: Sequence[Sequence[Item]],
        length: Callable[[Item], int],
        compute: Callable[[list[Item]], Sequence[Result]],
    ) -> list[list[Result]]:
        """Return what `compute` makes of each system's items, in their order; its batches are of similar length."""
        places = [(system, place) for system, those in enumerate(items) for place in range(len(those))]
        places.sort(key=lambda at: length(items[at[0]][at[1]]), reverse=True)
        found: dict[tuple[int, int], Result] = {}
        for start in range(0, len(places), self.batch_size):
            batch = places[start : start + self.batch_size]
            with self.bank.use([self.prefixes[system] for system, _ in batch]):
                results = compute([items[system][place] for system, place in batch])
            found.update(zip(batch, results, strict=True))
        return [[found[system, place] for place in range(len(those))] for system, those in enumerate(items)]
