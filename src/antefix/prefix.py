"""`Prefix`: the trained keys and values of one task, immutable, with what is known about their base model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from antefix.errors import ConfigError, PrefixFormatError, PrefixMismatchError
from antefix.shapes import Float
from antefix.sites import KINDS, Site

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
EXPECTED_DTYPES = "expected float32, bfloat16, float16 or float64"


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys `(kv_head, token, key_dim)` and values `(kv_head, token, value_dim)` for every site, by its path.

    `metadata` holds what can be written as JSON: the base model's name, class and fingerprint, and how it was trained.
    `modules` are tensors of modules trained beside it, such as a classification head, by `{module path}:{parameter}`.
    The tensors are not copied; whoever hands them over leaves them as they are. Raises `PrefixFormatError` where
    tensors and sites do not fit together.
    """

    sites: tuple[Site, ...]
    keys: Mapping[str, Float[torch.Tensor, "kv_head token key_dim"]]
    values: Mapping[str, Float[torch.Tensor, "kv_head token value_dim"]]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    modules: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", tuple(self.sites))
        for name in ("keys", "values", "metadata", "modules"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        self._validate()

    def __repr__(self) -> str:
        base = self.metadata.get("base_class")
        return f"Prefix(num_virtual_tokens={self.num_virtual_tokens}, sites={len(self.sites)}, base_class={base!r})"

    @property
    def num_virtual_tokens(self) -> int:
        """How many tokens the prefix stands for."""
        return next(iter(self.keys.values())).shape[1]

    def __getitem__(self, tokens: slice) -> Prefix:
        """Return the prefix of some tokens in a row, `prefix[1:]` the one without the first; keys stay as they are.

        Raises `ConfigError` if none is left.
        """
        is_part = isinstance(tokens, slice) and tokens.step in (None, 1)
        if not is_part or not range(*tokens.indices(self.num_virtual_tokens)):
            raise ConfigError(
                f"{_shown(tokens)} names no part of {self.num_virtual_tokens} virtual tokens; take a slice, such as "
                "prefix[1:] or prefix[:8]."
            )
        keys, values = ({path: t[:, tokens] for path, t in part.items()} for part in (self.keys, self.values))
        return Prefix(self.sites, keys, values, self.metadata, self.modules)

    def content_hash(self) -> str:
        """Return the SHA-256 of the sites, keys and values: equal for equal prefixes, whatever file they came from."""
        sites = sorted(self.sites, key=lambda site: site.path)
        digest = hashlib.sha256(json.dumps([asdict(site) for site in sites], sort_keys=True).encode())
        for site in sites:
            for tensor in (self.keys[site.path], self.values[site.path]):
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def to(self, device: torch.device) -> Prefix:
        """Return the same prefix on a device."""
        parts = (self.keys, self.values, self.modules)
        keys, values, modules = ({name: t.to(device) for name, t in part.items()} for part in parts)
        return Prefix(self.sites, keys, values, self.metadata, modules)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as plain data, which read-only mappings would refuse."""
        return Prefix, (self.sites, dict(self.keys), dict(self.values), dict(self.metadata), dict(self.modules))

    def check_fits(self, base_sites: Sequence[Site], text_sites: Sequence[Site]) -> None:
        """Raise `PrefixMismatchError`, saying what differs, unless this prefix was made for a base with these sites.

        `text_sites` are those in stacks that read tokens. The fingerprint, of either, tells what the prefix's own sites
        cannot: that its base had no others.
        """
        known = {site.path: site for site in base_sites}
        differences = [_difference(site, known.get(site.path)) for site in self.sites if known.get(site.path) != site]
        fitting = (geometry_fingerprint(base_sites), base_fingerprint(base_sites, text_sites, self.sites))
        if not differences and self.metadata.get("fingerprint", fitting[0]) not in fitting:
            differences = [
                f"it has the prefix's sites, but its {len(base_sites)} sites are not all those that were found in the "
                "other, which has another number of layers or was attached with other example_inputs"
            ]
        if differences:
            made_for = self.metadata.get("base_model") or self.metadata.get("base_class") or "another base model"
            more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise PrefixMismatchError(
                f"the prefix was made for {made_for} and does not fit this model: {'; '.join(differences[:3])}{more}."
            )

    def _validate(self) -> None:
        paths = {site.path for site in self.sites}
        if not paths or len(paths) < len(self.sites) or set(self.keys) != paths or set(self.values) != paths:
            raise PrefixFormatError("a prefix needs exactly one key and one value tensor for each of its sites.")
        tokens = self.num_virtual_tokens
        if tokens < 1:
            raise PrefixFormatError("a prefix needs at least one virtual token.")
        for site in self.sites:
            if ":" in site.path or site.kind not in KINDS:
                raise PrefixFormatError(
                    f"'{site.path}' of kind {site.kind!r} is no site; a path has no colon, and a kind is one of "
                    f"{', '.join(map(repr, KINDS))}."
                )
            for name, tensor, dim in (
                ("key", self.keys[site.path], site.key_dim),
                ("value", self.values[site.path], site.value_dim),
            ):
                expected = (site.num_key_value_heads, tokens, dim)
                if tuple(tensor.shape) != expected or tensor.dtype not in DTYPES:
                    raise PrefixFormatError(
                        f"the {name} of '{site.path}' is {tensor.dtype} of shape {tuple(tensor.shape)}; "
                        f"{EXPECTED_DTYPES} of shape {expected}."
                    )
        for name, tensor in self.modules.items():
            if not all(name.partition(":")):
                raise PrefixFormatError(f"'{name}' names no tensor of a module; expected 'module.path:parameter'.")
            if tensor.dtype not in DTYPES:
                raise PrefixFormatError(f"'{name}' is {tensor.dtype}; {EXPECTED_DTYPES}.")


def own_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's numbers as safetensors takes them: on the CPU, contiguous, and in memory of their own."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def geometry_fingerprint(sites: Sequence[Site]) -> str:
    """Return a hash of a base model's sites: paths, kinds, layers, heads and dimensions, no weights."""
    text = json.dumps([asdict(site) for site in sorted(sites, key=lambda site: site.path)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def base_fingerprint(base_sites: Sequence[Site], text_sites: Sequence[Site], sites: Sequence[Site]) -> str:
    """Return the fingerprint of the base that a prefix at these sites is made for; `text_sites` are all that read text.

    A prefix in stacks that read tokens is made for these alone: `attach` finds a tower only where it is shown what the
    tower reads.
    """
    return geometry_fingerprint(text_sites if set(sites) <= set(text_sites) else base_sites)


def _shown(tokens: object) -> str:
    if not isinstance(tokens, slice):
        return repr(tokens)
    ends = [tokens.start, tokens.stop, *([] if tokens.step is None else [tokens.step])]
    return ":".join("" if end is None else str(end) for end in ends)


def _difference(site: Site, base: Site | None) -> str:
    if base is None:
        return f"it has no {site.kind} attention at '{site.path}'"
    parts = [
        f"{name} {theirs} instead of {ours}"
        for (name, ours), theirs in zip(asdict(site).items(), asdict(base).values(), strict=True)
        if ours != theirs
    ]
    return f"'{site.path}' has {', '.join(parts)}"
