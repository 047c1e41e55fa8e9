"""How far training moved each virtual token from the text that it started as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from antefix.prefix import Prefix


@dataclass(frozen=True)
class Drift:
    """For each virtual token, the text it started as, and how far its keys and values have moved since.

    A distance is relative: the Euclidean norm of the difference over that of the start, averaged over the sites.
    """

    texts: Sequence[str]
    keys: Sequence[float]
    values: Sequence[float]


def drift(start: Prefix, now: Prefix, texts: Sequence[str]) -> Drift:
    """Compare a prefix with what it started as; `texts` has the text of each virtual token's start."""
    keys = [_distances(start.keys[site.path], now.keys[site.path]) for site in now.sites]
    values = [_distances(start.values[site.path], now.values[site.path]) for site in now.sites]
    return Drift(texts, torch.stack(keys).mean(0).tolist(), torch.stack(values).mean(0).tolist())


def _distances(start: Tensor, now: Tensor) -> Tensor:
    """Return the relative distance of each token of two tensors `(kv_head, token, dim)`."""
    whole = start.double().transpose(0, 1).flatten(1)
    moved = now.double().transpose(0, 1).flatten(1) - whole
    distances: Tensor = moved.norm(dim=1) / whole.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    return distances
