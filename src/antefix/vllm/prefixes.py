"""`Prefixes`: the named prefix files that an engine may be asked for, each checked against the base model."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from antefix.errors import ConfigError, PrefixMismatchError, UnknownPrefixError, UnsupportedModelError
from antefix.meta import shapes_only
from antefix.prefix import Prefix
from antefix.sites import Site, discover_sites, shares_keys
from antefix.storage import verify_prefix
from antefix.vllm.settings import CONNECTOR
from antefix.vllm.ticket import Ticket, make_secret

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Prefixes(Mapping[str, Ticket]):
    """Prefix files for one base model, by name; `base` is a hub name, a folder or 'embedded', and no weights are read.

    Raises `UnsupportedModelError` for a base whose every layer vLLM cannot give a prefix.
    """

    def __init__(self, base: str, files: Mapping[str, str | os.PathLike[str]] | None = None) -> None:
        make_secret()
        model = shapes_only(base)
        self.sites: tuple[Site, ...] = discover_sites(model)
        _check_base(model, self.sites)
        self._tickets: dict[str, Ticket] = {}
        for name, file in (files or {}).items():
            self.add(name, file)

    def __getitem__(self, name: str) -> Ticket:
        if name not in self._tickets:
            raise UnknownPrefixError(f"there is no prefix '{name}'; add its file first. There are {len(self)}.")
        return self._tickets[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tickets)

    def __len__(self) -> int:
        return len(self._tickets)

    def add(self, name: str, file: str | os.PathLike[str]) -> Ticket:
        """Read a prefix file, check that it fits, and offer it under a name, in place of an earlier one of that name.

        Raises `ConfigError` for a name that is none, `PrefixFormatError` for a damaged file, `PrefixMismatchError`
        for a prefix of another base model or one that is not at every layer.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} cannot name a prefix; a name has up to 128 letters, digits, dots, dashes and underscores "
                "and begins with a letter or digit."
            )
        prefix = verify_prefix(file)
        self._check_servable(name, prefix)
        ticket = Ticket(name, os.path.abspath(file), prefix.num_virtual_tokens, prefix.content_hash())
        self._tickets[name] = ticket
        return ticket

    def remove(self, name: str) -> None:
        """Offer a prefix no more; raises `UnknownPrefixError`."""
        del self._tickets[self[name].name]

    def check(self, llm: Any) -> None:
        """Raise `ConfigError` unless an engine, `vllm.LLM`, was made with `engine_args()`; another drops prefixes."""
        config = llm.llm_engine.vllm_config.kv_transfer_config
        if config is None or config.kv_connector != CONNECTOR:
            raise ConfigError("this engine would answer without prefixes; make it with **antefix.vllm.engine_args().")

    def use(self, name: str, sampling_params: Any) -> Any:
        """Return a copy of vLLM's `SamplingParams` that answers with a prefix.

        Raises `ConfigError` for vLLM's parameters of other kinds, such as `BeamSearchParams`, and for prompt
        log-probabilities: vLLM would compute the prefix's positions anew for them.
        """
        if not hasattr(sampling_params, "extra_args"):
            raise ConfigError(
                f"{type(sampling_params).__name__} cannot be used with a prefix, which vLLM would drop between its "
                "steps; sample by SamplingParams, with n instead of beams."
            )
        if sampling_params.prompt_logprobs is not None:
            raise ConfigError("prompt_logprobs cannot be had with a prefix: vLLM would compute its positions anew.")
        chosen = copy.copy(sampling_params)
        chosen.extra_args = (sampling_params.extra_args or {}) | {"kv_transfer_params": self[name].signed()}
        return chosen

    def _check_servable(self, name: str, prefix: Prefix) -> None:
        prefix.check_fits(self.sites, text_sites=self.sites)
        missing = {site.path for site in self.sites} - {site.path for site in prefix.sites}
        if missing:
            raise PrefixMismatchError(
                f"the prefix '{name}' is at {len(prefix.sites)} of {len(self.sites)} layers; in vLLM's cache a token "
                "is there at every layer or at none, so train it with layers=None."
            )
        if prefix.modules:
            raise PrefixMismatchError(
                f"the prefix '{name}' holds modules that were trained beside it, such as a head, which vLLM's model "
                "does not have."
            )


def _check_base(model: PreTrainedModel, sites: tuple[Site, ...]) -> None:
    others = {site.kind for site in sites} - {"decoder"}
    if others:
        why = f"has {' and '.join(sorted(others))} attention"
    elif len(sites) != model.config.get_text_config(decoder=True).num_hidden_layers:
        why = "has layers without attention, whose state vLLM would begin from nothing"
    elif any(site.key_dim != site.value_dim for site in sites):
        why = "has keys and values of different sizes (multi-head latent attention), which vLLM keeps compressed"
    elif any(shares_keys(model, site) for site in sites):
        why = "has layers that take their keys and values from others, where vLLM has no place for a prefix"
    else:
        return
    raise UnsupportedModelError(
        f"{type(model).__name__} {why}; vLLM can serve prefixes of decoder-only models whose every layer has attention "
        "with keys and values of its own. `antefix generate` and the library run this one."
    )


def files_in(directory: Path) -> dict[str, Path]:
    """Return the prefix files of a directory by their names without `.safetensors`; raises `ConfigError`."""
    if not directory.is_dir():
        raise ConfigError(f"there is no directory '{directory}'.")
    return {path.stem: path for path in sorted(directory.glob("*.safetensors")) if not path.name.startswith(".")}
