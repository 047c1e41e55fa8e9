"""`ScaledPrefix`: a prefix with the steps of its own size that the literature proposes, for the study alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from antefix.config import PrefixConfig
from antefix.encoder import flatten, split
from antefix.prefix import Prefix
from antefix.sites import Site


class ScaledPrefix(nn.Module):
    """Keys and values that start as given; a step of the optimiser is multiplied by a number for each part.

    `by` says which: "rms" multiplies those of a layer's keys, and of its values, by their root mean square at the
    start; "values" multiplies those of values by `factor`. `gated` multiplies the values of each head and token by a
    gate that is trained, too, the first token's as well. The tokens that `config` freezes stay as they are.
    """

    start: torch.Tensor
    scale: torch.Tensor
    trained: torch.Tensor

    def __init__(
        self, initial: Prefix, config: PrefixConfig, by: str | None = None, factor: float = 1.0, gated: bool = False
    ) -> None:
        super().__init__()
        self.sites: Sequence[Site] = initial.sites
        start = flatten(initial, self.sites)
        sizes = [size for site in self.sites for size in _sizes(site)]
        parts = start.split(sizes, dim=1)
        if by == "rms":
            factors = [float(part[1:].square().mean().sqrt()) for part in parts]
        else:
            factors = [factor if by == "values" and number % 2 else 1.0 for number in range(len(parts))]
        scale = torch.cat([torch.full((size,), value) for size, value in zip(sizes, factors, strict=True)])
        self.register_buffer("start", start)
        self.register_buffer("scale", scale)
        self.register_buffer("trained", _trained(initial.num_virtual_tokens, self.sites, config))
        self.moved = nn.Parameter(torch.zeros_like(start))
        num_heads = sum(site.num_key_value_heads for site in self.sites)
        self.gate = nn.Parameter(torch.ones(len(start), num_heads)) if gated else None

    def keys_and_values(self, dropout: bool = True) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Return key `(kv_head, token, key_dim)` and value `(kv_head, token, value_dim)` by site path."""
        made = split(self.start + self.moved * self.scale * self.trained, self.sites)
        if self.gate is None:
            return made
        gates = self.gate.T.split([site.num_key_value_heads for site in self.sites])
        return {
            site.path: (made[site.path][0], made[site.path][1] * gate[:, :, None])
            for site, gate in zip(self.sites, gates, strict=True)
        }


def _sizes(site: Site) -> tuple[int, int]:
    return site.num_key_value_heads * site.key_dim, site.num_key_value_heads * site.value_dim


def _trained(num_virtual_tokens: int, sites: Sequence[Site], config: PrefixConfig) -> torch.Tensor:
    """Return 1 where a number may move, 0 where the config freezes it, `(token, width)`."""
    token = torch.arange(num_virtual_tokens)[:, None]
    return torch.cat([(token >= config.num_frozen_tokens).float().expand(-1, site.width) for site in sites], dim=1)
