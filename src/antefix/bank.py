"""`PrefixBank`: the named prefixes of one base model, and which row of a batch uses which."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from antefix.attention.state import KeysAndValues
from antefix.config import PrefixConfig
from antefix.continuous import refuse_continuous_batching
from antefix.dispatch import is_switched
from antefix.encoder import PrefixEncoder, PrefixSource, encoders_of, prefix_of
from antefix.errors import ConfigError, UnknownPrefixError, UnsupportedModelError
from antefix.heads import Heads
from antefix.initialize import initial_prefix
from antefix.observation import device_of
from antefix.peft_format import read_peft
from antefix.prefix import Prefix, base_fingerprint
from antefix.resident import ResidentPrefixes
from antefix.scope import Scope
from antefix.selection import Selection, names_of
from antefix.sites import Kind, Site, sites_and_cut_off, text_sites
from antefix.stacks import Stacks
from antefix.storage import load_prefix, save_prefix
from antefix.trained import TrainedModules

logger = logging.getLogger(__name__)


def attach(
    model: PreTrainedModel, example_inputs: Mapping[str, Any] | None = None, max_resident_prefixes: int = 64
) -> PrefixBank:
    """Open every attention of a model to prefixes and return their bank; the model itself stays as it is.

    Of a `PeftModel` the base is opened, with the LoRA layers that it has, so that its prefixes fit the bare base, too.
    Frozen prefixes stay on the CPU in the dtype they have; where attention needs another device or dtype, at most
    `max_resident_prefixes` have a copy there, the most recently used ones.
    Raises `UnsupportedModelError` if prefixes cannot reach the attention, `ConfigError` if a bank is attached.
    """
    outer = model
    model = getattr(model, "get_base_model", lambda: model)()
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"{type(model).__name__} is no Transformers model, and only those take prefixes; attach to the one "
            "inside of it, if it has one."
        )
    if any(map(is_switched, model.modules())):
        raise ConfigError(f"this {type(model).__name__} has a bank already; use that one, or detach() it first.")
    if max_resident_prefixes < 1:
        raise ConfigError(f"max_resident_prefixes is {max_resident_prefixes!r}; it must be 1 or more.")
    bank = PrefixBank(model, *sites_and_cut_off(model, example_inputs), ResidentPrefixes(max_resident_prefixes))
    bank.outer_model = outer
    if model.config.is_encoder_decoder and all(site.kind != "encoder" for site in bank.sites):
        logger.warning(
            "No attention of the encoder of %s can be reached, so its prefixes stand in the decoder alone.",
            type(model).__name__,
        )
    return bank


@dataclass(frozen=True)
class _Entry:
    """A prefix as `data`, or the `sources` that make it anew for every forward, and the metadata to save with it."""

    metadata: Mapping[str, Any]
    data: Prefix | None = None
    sources: Sequence[PrefixSource] = ()


class PrefixBank:
    """The prefixes of one base model, by name; made by `attach`.

    At most one selection is active in a thread, or in a task of asyncio: one name for all rows of a batch, or a list
    with a name (or None, the bare base model) for each row. Rows that `generate` multiplies for beams keep the choice
    of their row.
    """

    def __init__(
        self, model: PreTrainedModel, sites: tuple[Site, ...], cut_off: frozenset[str], resident: ResidentPrefixes
    ) -> None:
        self.model = model
        self.outer_model: nn.Module = model
        """What was attached to: the model itself, or the `PeftModel` around it."""
        self.sites = sites
        self._text_sites = text_sites(model, sites)
        self._entries: dict[str, _Entry] = {}
        self._resident = resident
        self._default: Selection = None
        self._scope = Scope()
        self._undo: list[Callable[[], None]] = []
        self._attached = True
        self._stacks = Stacks(model, sites, cut_off, self.selection, self._materialize)
        self._heads = Heads(model, self.selection)
        self._trained = TrainedModules(model)
        self.when_detached(refuse_continuous_batching(model, lambda: any(names_of(self.selection()))))

    def __repr__(self) -> str:
        held = ", ".join(map(repr, self.names)) or "none"
        return f"PrefixBank({type(self.model).__name__} with {len(self.sites)} sites; prefixes: {held})"

    @property
    def names(self) -> list[str]:
        """The names of the prefixes, in the order they came."""
        return list(self._entries)

    @property
    def limits(self) -> dict[Kind, int]:
        """How many positions, prefix and sequence together, encoder and decoder have, where there is a limit."""
        return self._stacks.limits

    def add(
        self,
        name: str,
        source: PrefixConfig | Prefix | PrefixSource | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        metadata: Mapping[str, Any] | None = None,
        freeze_base: bool = True,
    ) -> None:
        """Add a prefix: from a `PrefixConfig` a trainable one, made active, the base frozen; a `Prefix` as it is.

        A `PrefixSource` makes the prefix anew for every forward. It stays the caller's: its parameters are not put into
        the model, and nothing is frozen for it. `metadata` is kept with the prefix and saved with it.
        `freeze_base=False` leaves everything else as trainable as it is, such as LoRA weights to be trained together
        with the prefix. Raises `ConfigError`, `ContextLengthError` if the model has too few positions, and
        `PrefixMismatchError` for a `Prefix` or a source of another base model.
        """
        self._check_attached()
        if not isinstance(name, str) or not name:
            raise ConfigError(f"a prefix needs a name; {name!r} is none.")
        if name in self._entries:
            raise ConfigError(f"there is a prefix named '{name}' already; remove it first.")
        own = dict(metadata or {})
        if isinstance(source, Prefix):
            self._accept(name, source)
            self._entries[name] = _Entry({**source.metadata, **own}, data=source.to(torch.device("cpu")))
        elif isinstance(source, PrefixSource):
            self._accept(name, prefix_of([source], source.sites, {}, {}))
            self._entries[name] = _Entry(own, sources=[source])
        elif source is None or isinstance(source, PrefixConfig):
            encoders = self._train(name, source or PrefixConfig(), tokenizer)
            if freeze_base:
                self._trained.freeze_base()
            self._entries[name] = _Entry(own, sources=encoders)
            self.activate(name)
        else:
            raise ConfigError(
                f"a prefix is made from a PrefixConfig, a Prefix or a PrefixSource, not from {source!r}; files are "
                "load()ed."
            )

    def requires_grad_(self, name: str, requires_grad: bool = True) -> None:
        """Train a prefix and the modules beside it, or keep them as they are; raises `ConfigError` for a frozen one."""
        modules = self.modules(name)
        if not modules:
            raise ConfigError(f"the prefix '{name}' has no parameters here; only one that a PrefixConfig made trains.")
        for module in modules:
            module.requires_grad_(requires_grad)

    def modules(self, name: str) -> list[nn.Module]:
        """Return the modules that make a prefix and those trained beside it; none for one that is data."""
        sources = [source for source in self._get(name).sources if isinstance(source, nn.Module)]
        return [*sources, *self._heads.modules(name).values()] if sources else []

    def heads(self, name: str) -> dict[str, nn.Module]:
        """Return the modules that a prefix brings in place of the base's, by the path of these."""
        self._get(name)
        return self._heads.modules(name)

    def load(self, path: str | os.PathLike[str], name: str) -> None:
        """Add the prefix of a file, or of a folder that PEFT saved, frozen and ready to use."""
        self.add(name, read_peft(path, self.model, self.sites) if os.path.isdir(path) else load_prefix(path))

    def save(self, name: str, path: str | os.PathLike[str]) -> None:
        """Write a prefix to a file, without the encoder that made it."""
        save_prefix(self.prefix(name), path)

    def prefix(self, name: str) -> Prefix:
        """Return a prefix as data, on the CPU; of a trainable one, as it is now."""
        entry = self._get(name)
        made = entry.data or prefix_of(entry.sources, self.sites, {}, self._heads.parameters(name))
        own = self._base_metadata(made.sites)
        metadata = {**own, **entry.metadata, "fingerprint": own["fingerprint"]}
        return Prefix(made.sites, made.keys, made.values, metadata, made.modules)

    def remove(self, name: str) -> None:
        """Drop a prefix; where it was active for all threads, none is afterwards."""
        modules = self.modules(name)
        del self._entries[name]
        self._resident.drop(name)
        self._heads.remove(name)
        self._trained.remove(modules)
        if name in names_of(self._default):
            self._default = None

    def activate(self, selection: Selection) -> None:
        """Use this selection in every thread from now on, wherever no `use` says otherwise."""
        self._default = self._checked(selection)

    def deactivate(self) -> None:
        """Run the bare base model wherever no `use` says otherwise."""
        self._default = None

    @contextmanager
    def use(self, selection: Selection) -> Iterator[None]:
        """Use a selection in this thread, or this task of asyncio, for as long as the context lasts.

        A compiled model goes by the thread alone, whichever task it runs in: await nothing within the context there.
        """
        with self._scope.selecting(self._checked(selection)):
            yield

    def detach(self) -> None:
        """Give the base model back as it was, bit for bit; the bank is of no use afterwards but to read prefixes."""
        if not self._attached:
            return
        self._attached = False
        self._heads.close()
        for undo in reversed(self._undo):
            undo()
        self._stacks.close()
        self._trained.close()

    def when_detached(self, undo: Callable[[], None]) -> None:
        """Call `undo`, too, when the bank is detached."""
        self._undo.append(undo)

    def selection(self) -> Selection:
        """Return what this thread, or this task of asyncio, uses now."""
        selections = self._scope.selections
        return selections[-1] if selections else self._default

    def _materialize(self, name: str, sites: Sequence[Site], cache: Any) -> KeysAndValues:
        """Return the keys and values of a prefix at the sites of one stack, with gradients where it trains."""
        entry = self._get(name)
        if not torch.compiler.is_compiling():
            self._heads.check_in_use(name)
        if entry.data is not None:
            return self._resident.frozen(name, entry.data)
        needed = [source for source in entry.sources if not set(source.sites).isdisjoint(sites)]
        return KeysAndValues(
            {path: pair for source in needed for path, pair in self._resident.made(source, cache).items()}
        )

    def _accept(self, name: str, prefix: Prefix) -> None:
        """Check that a prefix that others made fits, and load the modules that it brings."""
        prefix.check_fits(self.sites, self._text_sites)
        self._stacks.check_room(prefix.sites, prefix.num_virtual_tokens)
        self._heads.load(name, prefix.modules)

    def _train(self, name: str, config: PrefixConfig, tokenizer: PreTrainedTokenizerBase | None) -> list[PrefixEncoder]:
        """Put what makes a prefix, and the modules to be trained beside it, into the model."""
        with torch.inference_mode(False):  # what is to be trained goes on outside of the caller's
            encoders = self._encoders(config, tokenizer)
            self._trained.add([*encoders, *self._heads.add(name, config.trainable_modules)])
        return encoders

    def _encoders(self, config: PrefixConfig, tokenizer: PreTrainedTokenizerBase | None) -> list[PrefixEncoder]:
        sites = config.select(self.sites)
        self._stacks.check_room(sites, config.num_virtual_tokens)
        if config.init == "text":
            self._stacks.check_reads(config.num_virtual_tokens)
        with self.use(None):
            initial = initial_prefix(self.model, tokenizer, config, sites)
        dtype = self.model.dtype
        encoders = encoders_of(sites, config, initial, dtype if dtype.itemsize > 1 else None)
        return [encoder.to(device_of(self.model)).train(self.model.training) for encoder in encoders]

    def _base_metadata(self, sites: Sequence[Site]) -> dict[str, Any]:
        return {
            "base_model": self.model.config.name_or_path or "",
            "base_class": type(self.model).__name__,
            "fingerprint": base_fingerprint(self.sites, self._text_sites, sites),
        }

    def _check_attached(self) -> None:
        if not self._attached:
            raise ConfigError("this bank was detached from its model; attach(model) gives a new one.")

    def _checked(self, selection: Selection) -> Selection:
        """Return a selection of prefixes that are there; of a list its own copy, which nobody changes."""
        self._check_attached()
        for name in names_of(selection):
            if name is not None:
                self._get(name)
        return tuple(selection) if isinstance(selection, list) else selection

    def _get(self, name: str) -> _Entry:
        if not isinstance(name, str) or name not in self._entries:
            known = ", ".join(f"'{known}'" for known in self._entries) or "none"
            raise UnknownPrefixError(f"there is no prefix named {name!r} in this bank; it holds {known}.")
        return self._entries[name]
