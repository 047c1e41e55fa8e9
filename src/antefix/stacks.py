"""`Stacks`: all stacks of one model that have sites, opened to prefixes, and the room that they have for them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel

from antefix.attention.backend import open_to_prefixes
from antefix.attention.carrier import Carrier
from antefix.attention.open_site import OpenSite
from antefix.attention.state import ForwardPrefixes, KeysAndValues
from antefix.errors import ContextLengthError, UnsupportedModelError
from antefix.padding import outer_mask
from antefix.selection import Selection, names_of
from antefix.sites import KINDS, Kind, Site, stack_path
from antefix.stack import Stack


class Stacks:
    """Opens every site of a model and watches every stack that has some; `cut_off` are those no keyword reaches.

    `selection` and `materialize` are as in `Stack`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sites: Sequence[Site],
        cut_off: frozenset[str],
        selection: Callable[[], Selection],
        materialize: Callable[[str, Sequence[Site], Any], KeysAndValues],
    ) -> None:
        self.model = model
        self._selection = selection
        self._materialize = materialize
        self._stacks: dict[str, Stack] = {}
        self._undo: list[Callable[[], None]] = []
        sites_of: dict[str, list[Site]] = {}
        for site in sites:
            sites_of.setdefault(stack_path(model, site), []).append(site)
        encoder = model.get_encoder() if model.config.is_encoder_decoder else None
        for path, own in sites_of.items():
            module = model.get_submodule(path)
            assert isinstance(module, PreTrainedModel)
            is_cut_off = any(site.path in cut_off for site in own)
            carrier: Carrier[ForwardPrefixes | None] | None = Carrier(lambda: None) if is_cut_off else None
            for site in own:
                open_site = OpenSite(site, carrier, functools.partial(self._is_wanted, site))
                self._undo.append(open_to_prefixes(model.get_submodule(site.path), open_site))
            outer = outer_mask(model, module)
            self._stacks[path] = Stack(module, own, selection, materialize, carrier, outer, module is encoder)

    @property
    def limits(self) -> dict[Kind, int]:
        """How many positions, prefix and sequence together, encoder and decoder have, where there is a limit."""
        return {
            site.kind: stack.limit
            for stack in self._stacks.values()
            for site in stack.sites
            if site.kind != "cross" and stack.limit is not None
        }

    def close(self) -> None:
        """Close every site and take every hook away, bit for bit."""
        for stack in self._stacks.values():
            stack.close()
        for undo in reversed(self._undo):
            undo()

    def check_room(self, sites: Sequence[Site], num_virtual_tokens: int) -> None:
        """Say before training, not in the middle of it, that a model has too few positions, or ones that stay."""
        self._check_places(sites)
        for site in sites:
            limit = self._stacks[stack_path(self.model, site)].limit
            if site.kind != "cross" and limit is not None and num_virtual_tokens >= limit:
                raise ContextLengthError(
                    f"a prefix of {num_virtual_tokens} virtual tokens leaves no room for a sequence: "
                    f"{type(self.model).__name__} has {limit} positions."
                )

    def _is_wanted(self, site: Site) -> bool:
        """Return whether a prefix in use now has something for a site."""
        names = [name for name in names_of(self._selection()) if name is not None]
        return any(site.path in self._materialize(name, [site], None).pairs for name in names)

    def _check_places(self, sites: Sequence[Site]) -> None:
        of_self_attention = [site for site in sites if site.kind != "cross"]
        stuck = {s.kind for s in of_self_attention if not self._stacks[stack_path(self.model, s)].positions.can_shift}
        if stuck:
            stacks = " and ".join(kind for kind in KINDS if kind in stuck)
            left = tuple(kind for kind in KINDS if kind not in stuck and any(site.kind == kind for site in sites))
            instead = f"give PrefixConfig sites={left!r}" if left else "no prefix can stand there"
            raise UnsupportedModelError(
                f"{type(self.model).__name__} counts the positions of its {stacks} in a way that a prefix cannot move; "
                f"{instead}."
            )

    def check_reads(self, num_virtual_tokens: int) -> None:
        """Refuse a text longer than any stack can read: it runs through them all, even for cross-attention alone."""
        limits = [stack.positions.limit for stack in self._stacks.values() if stack.positions.limit is not None]
        if limits and num_virtual_tokens > min(limits):
            raise ContextLengthError(
                f"init='text' reads a text of {num_virtual_tokens} tokens, but {type(self.model).__name__} has "
                f"{min(limits)} positions; use fewer virtual tokens, init='random' or init='zero'."
            )
