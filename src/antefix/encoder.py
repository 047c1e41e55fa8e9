"""`PrefixEncoder`: the trainable parameters that make a prefix.

Li & Liang (2021), section 4: either the keys and values themselves are trained (`embedding`), or a small embedding
and a two-layer network that makes them and is thrown away after training (`mlp`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from antefix.config import PrefixConfig
from antefix.prefix import Prefix, own_copy
from antefix.shapes import Float, Int
from antefix.sharding import call_whole
from antefix.sites import KINDS, Site


@runtime_checkable
class PrefixSource(Protocol):
    """What can make a prefix anew for every forward, with gradients: a `PrefixEncoder`, or a module of your own.

    `training` is as in any `nn.Module`: where it is off and no gradients are wanted, what was made for a cache is used
    for as long as that cache fills.
    """

    @property
    def sites(self) -> Sequence[Site]:
        """The sites it makes keys and values for, always the same."""

    @property
    def training(self) -> bool:
        """Whether it trains now."""

    def keys_and_values(self, dropout: bool = True) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Return key `(kv_head, token, key_dim)` and value `(kv_head, token, value_dim)` by site path.

        Without `dropout`, return what is to be saved.
        """


class PrefixEncoder(nn.Module):
    """Make the keys and values of some sites from trainable parameters, which begin in fp32.

    The flat output has one row per virtual token: for each site its key, then its value, heads first. `initial` is the
    prefix to begin at; without one, the parameters are drawn as PyTorch draws them. With the MLP, `initial` is added
    to what the network makes, which begins at zero. Keys and values are cast to `attention_dtype` at once, if
    one is given; where attention computes in another, it casts them again, site by site.
    """

    start: torch.Tensor | None
    frozen: torch.Tensor | None
    dtype_of: torch.Tensor | None

    def __init__(
        self,
        sites: Sequence[Site],
        config: PrefixConfig,
        initial: Prefix | None = None,
        attention_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dtype_of = None if attention_dtype is None else torch.empty(0, dtype=attention_dtype)
        self.register_buffer("dtype_of", dtype_of, persistent=False)  # goes to another dtype with the base
        self.sites = tuple(sites)
        self.num_virtual_tokens = config.num_virtual_tokens
        self.num_frozen_tokens = config.num_frozen_tokens if initial is not None else 0
        self.width = sum(site.width for site in self.sites)
        self.dropout = nn.Dropout(config.dropout)
        start = None if initial is None else flatten(initial, self.sites)
        # A copy, because the optimiser changes an embedding that begins at `start` in place.
        frozen = start[: self.num_frozen_tokens].clone() if start is not None and self.num_frozen_tokens else None
        self.register_buffer("frozen", frozen)
        if config.reparameterization == "mlp":
            narrow = self.sites[0].num_key_value_heads * self.sites[0].key_dim
            self.embedding = nn.Embedding(self.num_virtual_tokens, narrow, dtype=torch.float32)
            first = nn.Linear(narrow, config.encoder_hidden_size, dtype=torch.float32)
            last = nn.Linear(config.encoder_hidden_size, self.width, dtype=torch.float32)
            if start is not None:
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
            self.transform: nn.Module = nn.Sequential(first, nn.Tanh(), last)
            self.register_buffer("start", start)
        else:
            self.embedding = nn.Embedding(self.num_virtual_tokens, self.width, _weight=start, dtype=torch.float32)
            self.transform = nn.Identity()
            self.register_buffer("start", None)

    def forward(
        self, tokens: Int[torch.Tensor, "*batch token"] | None = None, dropout: bool = False
    ) -> Float[torch.Tensor, "*batch token width"]:
        """Return the flat keys and values of virtual tokens, numbered from 0; by default of all, once.

        In training mode, `dropout` drops single numbers, but none of frozen tokens.
        """
        embedded = self.embedding.weight if tokens is None else self.embedding(tokens)
        if tokens is None:
            tokens = torch.arange(self.num_virtual_tokens, device=embedded.device)
        flat: torch.Tensor = self.transform(embedded)
        if self.start is not None:
            flat = self.start[tokens] + flat
        if dropout:
            flat = self.dropout(flat)
        if self.frozen is not None:
            frozen = self.frozen[tokens.clamp(max=self.num_frozen_tokens - 1)]
            flat = torch.where((tokens < self.num_frozen_tokens)[..., None], frozen, flat)
        return flat

    def keys_and_values(self, dropout: bool = True) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Return key `(kv_head, token, key_dim)` and value `(kv_head, token, value_dim)` by site path.

        Gradients flow back to the parameters; in training mode, `dropout` drops single numbers of the flat output, but
        none of frozen tokens. Without it, they are as they are to be saved, in the dtype of the parameters.
        """
        flat = self(dropout=dropout)
        if dropout and self.dtype_of is not None:
            flat = flat.to(self.dtype_of.dtype)
        return split(flat, self.sites)


def encoders_of(
    sites: Sequence[Site], config: PrefixConfig, initial: Prefix | None, attention_dtype: torch.dtype | None
) -> list[PrefixEncoder]:
    """Return an encoder for each kind of attention among the sites, as in Li & Liang (2021)."""
    by_kind = ([site for site in sites if site.kind == kind] for kind in KINDS)
    return [PrefixEncoder(group, config, initial, attention_dtype) for group in by_kind if group]


def prefix_of(
    sources: Sequence[PrefixSource],
    sites: Sequence[Site],
    metadata: Mapping[str, Any],
    modules: Mapping[str, torch.Tensor],
) -> Prefix:
    """Return what sources make now, at those of the sites that they have, as data of its own, on the CPU."""
    with torch.no_grad(), _without_autocast():
        made = {path: pair for source in sources for path, pair in _made(source).items()}
    return Prefix(
        sites=tuple(site for site in sites if site.path in made),
        keys={path: own_copy(key) for path, (key, _) in made.items()},
        values={path: own_copy(value) for path, (_, value) in made.items()},
        metadata=metadata,
        modules={name: own_copy(tensor) for name, tensor in modules.items()},
    )


@contextmanager
def _without_autocast() -> Iterator[None]:
    """Compute in the dtype of the parameters, also where training computes in another."""
    accelerator = torch.accelerator.current_accelerator()
    with ExitStack() as stack:
        for device in {"cpu", "cpu" if accelerator is None else accelerator.type}:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _made(source: PrefixSource) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    if isinstance(source, nn.Module):
        made: dict[str, tuple[torch.Tensor, torch.Tensor]] = call_whole(source, "keys_and_values", dropout=False)
        return made
    return source.keys_and_values(dropout=False)


def flatten(prefix: Prefix, sites: Sequence[Site]) -> Float[torch.Tensor, "token width"]:
    """Lay a prefix out flat, in fp32: one row a token, for each site its key, then its value, heads first."""
    parts = [part for site in sites for part in (prefix.keys[site.path], prefix.values[site.path])]
    return torch.cat([part.detach().float().transpose(0, 1).flatten(1) for part in parts], dim=1)


def split(
    flat: Float[torch.Tensor, "token width"], sites: Sequence[Site]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Undo `flatten`: return `(key, value)` by site path, `(kv_head, token, dim)`, laid out as attention reads them."""
    dims = [(site.num_key_value_heads, dim) for site in sites for dim in (site.key_dim, site.value_dim)]
    if len(set(dims)) == 1:  # all in one piece, forward and backward
        parts = flat.unflatten(1, (len(dims), *dims[0])).permute(1, 2, 0, 3).contiguous().unbind()
        return _by_path(parts, sites)
    columns = flat.split([heads * dim for heads, dim in dims], dim=1)
    parts = [
        column.unflatten(1, shape).transpose(0, 1).contiguous() for column, shape in zip(columns, dims, strict=True)
    ]
    return _by_path(parts, sites)


def _by_path(parts: Sequence[torch.Tensor], sites: Sequence[Site]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {site.path: (parts[2 * i], parts[2 * i + 1]) for i, site in enumerate(sites)}
