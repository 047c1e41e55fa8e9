"""The prefix without each of its layers in turn, which shows what each layer's part is worth."""

from __future__ import annotations

from antefix.prefix import Prefix
from antefix.sites import Site


def without_each_layer(prefix: Prefix) -> dict[str, Prefix]:
    """Return the prefix without each of its layers, by names such as 'decoder 3'; empty if it has one layer only."""
    layers = dict.fromkeys((site.kind, site.layer) for site in prefix.sites)
    if len(layers) == 1:
        return {}
    return {
        f"{kind} {layer}": _at(prefix, [site for site in prefix.sites if (site.kind, site.layer) != (kind, layer)])
        for kind, layer in layers
    }


def _at(prefix: Prefix, sites: list[Site]) -> Prefix:
    keys, values = ({site.path: part[site.path] for site in sites} for part in (prefix.keys, prefix.values))
    return Prefix(tuple(sites), keys, values, prefix.metadata, prefix.modules)
