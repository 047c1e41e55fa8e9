"""`OpenSite`: what an attention module that takes prefixes knows, kept by the config that it alone has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from antefix.attention.carrier import Carrier
from antefix.attention.state import ForwardPrefixes
from antefix.dispatch import settings_of
from antefix.sites import Site


@dataclass(frozen=True, eq=False)
class OpenSite:
    """A site, where a module that no keyword reaches gets its prefixes from, and whether one in use is for it."""

    site: Site
    carrier: Carrier[ForwardPrefixes | None] | None
    is_wanted: Callable[[], bool]

    @classmethod
    def of(cls, module: nn.Module) -> OpenSite:
        """Return what an opened module knows."""
        known: OpenSite = settings_of(module.config)["antefix_open_site"]
        return known
