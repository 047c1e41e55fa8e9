"""How PEFT lays a prefix out flat, and deals it out to the layers of a model.

A row for each virtual token holds keys and values of `num_layers` layers in turn, heads first. PEFT cuts the row into
groups of `2 * num_transformer_submodules` and gives a decoder layer the first two of its group. For an encoder-decoder,
which has two submodules, it puts the row behind itself before, so that there are groups for all layers; the last two of
a group, meant for cross-attention, are thrown away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import PreTrainedModel

from antefix.errors import PrefixFormatError, PrefixMismatchError, UnsupportedModelError
from antefix.prefix import Prefix
from antefix.shapes import Float
from antefix.sites import Site, shares_keys


@dataclass(frozen=True)
class PeftLayout:
    """How a flat prefix is dealt out to layers, by the names that PEFT's configurations have for it."""

    num_virtual_tokens: int
    num_layers: int
    num_attention_heads: int
    """Heads of keys and values, whatever its name says."""
    token_dim: int
    """Numbers of one key, or one value, over all heads."""
    num_transformer_submodules: int = 1

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> PeftLayout:
        """Read the layout from a configuration; raises `PrefixFormatError` if it is none."""
        numbers = {field.name: config.get(field.name) for field in fields(cls)}
        for name, number in numbers.items():
            if type(number) is not int or number < 1:
                raise PrefixFormatError(f"PEFT's configuration has {name}={number!r}; it must be a number from 1 up.")
        layout = cls(**numbers)  # type: ignore[arg-type]
        if layout.token_dim % layout.num_attention_heads or layout.num_transformer_submodules > 2:
            raise PrefixFormatError(f"PEFT's configuration describes no prefix: {layout}.")
        return layout

    @property
    def head_dim(self) -> int:
        """Numbers of one head's key, or value."""
        return self.token_dim // self.num_attention_heads

    def key_number(self, layer: int) -> int:
        """Tell which part of a row is a layer's key; the next one is its value."""
        return 2 * self.num_transformer_submodules * layer % (2 * self.num_layers)

    def deal(
        self, flat: Float[torch.Tensor, "token width"], sites: Sequence[Site]
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Return key and value `(kv_head, token, head_dim)` by site path; gradients flow back to `flat`."""
        shape = (self.num_virtual_tokens, 2 * self.num_layers, self.num_attention_heads, self.head_dim)
        parts = flat.view(shape).permute(1, 2, 0, 3).contiguous()
        numbers = {site.path: self.key_number(site.layer) for site in sites}
        return {path: (parts[number], parts[number + 1]) for path, number in numbers.items()}

    def check_fits(self, sites: Sequence[Site]) -> None:
        """Raise `PrefixMismatchError`, saying what differs, unless these are the sites that PEFT deals it out to."""
        differences = [
            f"'{site.path}' has {site.num_key_value_heads} heads with keys of {site.key_dim} and values of "
            f"{site.value_dim} instead of {self.num_attention_heads} with {self.head_dim}"
            for site in sites
            if (site.num_key_value_heads, site.key_dim, site.value_dim)
            != (self.num_attention_heads, self.head_dim, self.head_dim)
        ]
        # PEFT counts the layers of an encoder-decoder's encoder, and its decoder may have fewer.
        fewer_are_fine = self.num_transformer_submodules == 2
        if len(sites) > self.num_layers or (len(sites) < self.num_layers and not fewer_are_fine):
            differences.insert(0, f"it has {len(sites)} layers of attention instead of {self.num_layers}")
        if differences:
            raise PrefixMismatchError(
                f"PEFT's prefix does not fit this model: {'; '.join(differences[:2])}"
                f"{f', and {len(differences) - 2} more' if len(differences) > 2 else ''}."
            )


def peft_sites(model: PreTrainedModel, sites: Sequence[Site]) -> tuple[Site, ...]:
    """Return those sites of a model that PEFT has prefixes for: self-attention of the decoder, or of the only encoder.

    Raises `UnsupportedModelError` if its layers are not what PEFT takes them for.
    """
    chosen = [site for site in sites if site.kind == "decoder"] or [site for site in sites if site.kind == "encoder"]
    if [site.layer for site in chosen] != list(range(len(chosen))):
        layers = ", ".join(str(site.layer) for site in chosen)
        raise UnsupportedModelError(
            f"{type(model).__name__} has attention in layers {layers}; PEFT's prefixes are for models that have it in "
            "every layer once."
        )
    if any(shares_keys(model, site) for site in chosen):
        raise UnsupportedModelError(
            f"layers of {type(model).__name__} share their keys and values; antefix does not read or write PEFT's "
            "prefixes for such models."
        )
    return tuple(chosen)


def layout_for(prefix: Prefix, chosen: Sequence[Site], submodules: int) -> PeftLayout:
    """Return the layout that can hold a prefix at these sites."""
    site, number = chosen[0], len(chosen)

    def layout(num_layers: int) -> PeftLayout:
        width = site.num_key_value_heads * site.key_dim
        return PeftLayout(prefix.num_virtual_tokens, num_layers, site.num_key_value_heads, width, submodules)

    owner: dict[int, Site] = {}
    for other in chosen:
        first = owner.setdefault(layout(number).key_number(other.layer), other)
        same = (torch.equal(part[first.path], part[other.path]) for part in (prefix.keys, prefix.values))
        if not all(same):
            # Dealt out two by two, an even number of layers meets the same half of a row twice; an odd number meets
            # every part once. So one layer more, which no attention asks for, keeps all of them apart.
            return layout(number + 1)
    return layout(number)


def flatten(prefix: Prefix, chosen: Sequence[Site], layout: PeftLayout) -> Float[torch.Tensor, "token width"]:
    """Undo `PeftLayout.deal`; parts that no layer uses are zero."""
    first = prefix.keys[chosen[0].path]
    parts = [first.new_zeros(layout.num_virtual_tokens, layout.token_dim) for _ in range(2 * layout.num_layers)]
    for site in chosen:
        number = layout.key_number(site.layer)
        for offset, held in enumerate((prefix.keys, prefix.values)):
            parts[number + offset] = held[site.path].detach().transpose(0, 1).flatten(1)
    return torch.cat(parts, dim=1)
