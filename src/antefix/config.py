"""`PrefixConfig`: how a prefix is made, where it stands, and what is trained beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from antefix.errors import ConfigError
from antefix.sites import KINDS, Kind, Site


@dataclass(frozen=True)
class PrefixConfig:
    """How a prefix is made and where it stands; raises `ConfigError` for a setting that cannot be.

    `sites` are the kinds of attention it stands at; None means all, but where a decoder has towers for images or
    sounds, the decoder alone. `layers` restricts it to these layer numbers. `num_frozen_tokens` first tokens keep the
    values they start with. `trainable_modules` names modules of the base model, such as a classification head, of which
    the prefix trains copies of its own.
    """

    num_virtual_tokens: int = 32
    sites: Sequence[Kind] | None = None
    layers: Sequence[int] | None = None
    reparameterization: Literal["mlp"] | None = None
    encoder_hidden_size: int = 512
    init: Literal["text", "random", "zero"] = "text"
    init_text: str | None = None
    num_frozen_tokens: int = 0
    dropout: float = 0.0
    trainable_modules: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("sites", "layers", "trainable_modules"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _sequence(name, getattr(self, name)))
        for kind in self.sites or ():
            _one_of("sites", kind, KINDS)
        for layer in self.layers or ():
            _at_least("layers", layer, 0)
        _at_least("num_virtual_tokens", self.num_virtual_tokens, 1)
        _at_least("encoder_hidden_size", self.encoder_hidden_size, 1)
        _one_of("reparameterization", self.reparameterization, (None, "mlp"))
        _one_of("init", self.init, ("text", "random", "zero"))
        if self.sites == ():
            raise ConfigError("sites is empty; name at least one of 'encoder', 'decoder' and 'cross'.")
        if self.layers == ():
            raise ConfigError("layers is empty; name at least one, or leave it out for all of them.")
        if not isinstance(self.dropout, int | float) or not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout is {self.dropout!r}; it must be a number of at least 0 and below 1.")
        if not isinstance(self.init_text, str | None):
            raise ConfigError(f"init_text is {self.init_text!r}; it must be text.")
        if self.init_text is not None and self.init != "text":
            raise ConfigError(f"init_text is given, but init is '{self.init}'; set init='text' to use it.")
        self._check_frozen()

    def _check_frozen(self) -> None:
        _at_least("num_frozen_tokens", self.num_frozen_tokens, 0)
        if self.num_frozen_tokens >= self.num_virtual_tokens:
            raise ConfigError(
                f"num_frozen_tokens is {self.num_frozen_tokens} of {self.num_virtual_tokens} virtual tokens; "
                "at least one must be left to train."
            )
        if self.num_frozen_tokens and self.reparameterization == "mlp" and self.init == "random":
            raise ConfigError(
                "num_frozen_tokens needs values to freeze, and an MLP with init='random' has none to start from; "
                "set init='text' or num_frozen_tokens=0."
            )

    def select(self, sites: Iterable[Site]) -> tuple[Site, ...]:
        """Return those of a model's sites that the prefix shall stand at."""
        sites = tuple(sites)
        kinds = self.sites or _usual_kinds(sites)
        chosen = tuple(
            site for site in sites if site.kind in kinds and (self.layers is None or site.layer in self.layers)
        )
        numbers = {site.layer for site in sites if site.kind in kinds}
        absent = [layer for layer in self.layers or () if layer not in numbers]
        if chosen and absent:
            raise ConfigError(f"layers names {absent[0]}, and this model's have the numbers 0 to {max(numbers)}.")
        if not chosen:
            layers = "" if self.layers is None else f" in layers {', '.join(map(str, self.layers))}"
            counts = ((sum(site.kind == kind for site in sites), kind) for kind in KINDS)
            found = " and ".join(f"{number} {kind}" for number, kind in counts if number)
            raise ConfigError(f"no attention of this model is {' or '.join(kinds)}{layers}; it has {found} attentions.")
        return chosen


def _usual_kinds(sites: Sequence[Site]) -> tuple[Kind, ...]:
    """Return all kinds, or only the decoder's if no cross-attention ties it to the encoders, which are then towers.

    Cross-attention does so among a decoder's layers; elsewhere it is how a tower sums up an image.
    """
    decoders = {_layers_of(site) for site in sites if site.kind == "decoder"}
    is_tied = any(site.kind == "cross" and _layers_of(site) in decoders for site in sites)
    return ("decoder",) if decoders and not is_tied else KINDS


def _layers_of(site: Site) -> str:
    """Return the path of the list of layers that a site lies in."""
    return re.split(r"\.\d+\.", site.path, maxsplit=1)[0]


def _sequence(name: str, given: object) -> tuple[object, ...]:
    if not isinstance(given, Iterable):
        raise ConfigError(f"{name} is {given!r}; it must be a sequence.")
    return (given,) if isinstance(given, str) else tuple(given)


def _at_least(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least {least}.")


def _one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}.")
