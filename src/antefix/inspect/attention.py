"""How much attention real tokens give to each virtual token, head by head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from antefix.attention.backend import attend
from antefix.dispatch import switched
from antefix.prefix import Prefix
from antefix.sites import Kind, Site


class AttentionShares:
    """Sums up attention over batches, of which it keeps only one number per head and virtual token."""

    def __init__(self, prefix: Prefix) -> None:
        self._sites = prefix.sites
        self._num_virtual_tokens = prefix.num_virtual_tokens
        self._sums: dict[str, Tensor] = {}
        self._num_queries = dict.fromkeys((site.path for site in prefix.sites), 0)

    @contextmanager
    def watching(self, model: nn.Module, real: Mapping[Kind, Tensor]) -> Iterator[None]:
        """Add the attention of one forward within; the model's must be 'eager', and all rows must use the prefix.

        `real` tells for each kind of site which queries are real tokens, `(row, query)`.
        """
        with ExitStack() as stack:
            for site in self._sites:
                note = self._noting(site, real[site.kind])
                module = model.get_submodule(site.path)
                stack.enter_context(switched(module, "antefix-inspect", _watched, antefix_weights=note))
            yield

    def by_site(self) -> dict[str, Tensor]:
        """Return the mean share of attention `(head, token)` that real tokens give to the prefix, by site path."""
        return {path: total / max(self._num_queries[path], 1) for path, total in self._sums.items()}

    def _noting(self, site: Site, real: Tensor) -> Callable[[Tensor], None]:
        def note(weights: Tensor) -> None:
            shares = weights[..., : self._num_virtual_tokens].double()
            found = torch.einsum("bhqt,bq->ht", shares, real.to(shares.device, shares.dtype)).cpu()
            self._sums[site.path] = self._sums.get(site.path, torch.zeros_like(found)) + found
            self._num_queries[site.path] += int(real.sum())

        return note


def _watched(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    output, weights = attend(module, *args, **kwargs)
    assert weights is not None  # eager attention returns them
    vars(module.config)["antefix_weights"](weights)
    return output, weights
