"""Prefix-Tuning+ (arXiv 2506.13674), as far as the study needs it: a prefix outside of the softmax.

What attention returns for a query q gains phi(q) M, with phi(q) = elu(q) + 1 and one trained matrix M a head, so that
the prefix takes no attention away from the sequence. Queries are taken before their rotation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Decoupled(nn.Module):
    """One matrix `(head, head_dim, head_dim)`, zero at first, that adds to what an attention returns."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.head_dim = attention.head_dim
        num_heads = attention.q_proj.out_features // self.head_dim
        self.matrix = nn.Parameter(torch.zeros(num_heads, self.head_dim, self.head_dim))
        self._queries: torch.Tensor | None = None
        attention.q_proj.register_forward_hook(self._after_queries)
        output = attention.o_proj if hasattr(attention, "o_proj") else attention.out_proj
        output.register_forward_pre_hook(self._before_output)

    def _after_queries(self, module: nn.Module, arguments: Any, queries: torch.Tensor) -> None:
        self._queries = nn.functional.elu(queries.unflatten(-1, (-1, self.head_dim))) + 1

    def _before_output(self, module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        assert self._queries is not None
        added = torch.einsum("...hd,hde->...he", self._queries, self.matrix)
        return (arguments[0] + added.flatten(-2).view_as(arguments[0]), *arguments[1:])


def decouple(model: Any) -> None:
    """Freeze a model, and add a matrix to every attention, to be trained."""
    model.requires_grad_(False)
    attentions = [module for module in model.modules() if hasattr(module, "q_proj") and hasattr(module, "head_dim")]
    model.decoupled = nn.ModuleList(Decoupled(attention) for attention in attentions)
