"""PEFT: its checkpoints as prefixes, and its models with antefix's attention.

`read` and `write` need nothing but the files. `accelerate` takes a `PeftModel` of prefix tuning, or of cartridges, as
it is: its parameters stay PEFT's, and PEFT goes on to train, save, load and choose them.
"""

from __future__ import annotations

import functools
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from antefix.bank import PrefixBank, attach
from antefix.errors import ConfigError
from antefix.peft_format import PEFT_TYPES
from antefix.peft_format import read_peft as read
from antefix.peft_format import write_peft as write
from antefix.peft_layout import PeftLayout, peft_sites
from antefix.selection import Selection, names_of, rows_of
from antefix.sites import Site

__all__ = ["accelerate", "read", "write"]

BASE = "__base__"
"""PEFT's name, among `adapter_names`, for rows without an adapter."""


def accelerate(peft_model: nn.Module) -> PrefixBank:
    """Let a `PeftModel` with prefixes run through antefix's attention; `detach` of the bank undoes it.

    The model keeps its class, configuration, parameters and files. From now on `forward` and `generate` take
    `adapter_names`, one for each row, and a cache holds the tokens alone. Adapters may come and go; the bank has them
    by their names. Raises `ConfigError` for what is no such model, or has been accelerated, and what `attach` raises.
    """
    import peft

    if not isinstance(peft_model, peft.PeftModel):
        raise ConfigError(f"accelerate takes a peft.PeftModel, not {type(peft_model).__name__}.")
    if peft_model.peft_type not in PEFT_TYPES:
        kind = getattr(peft_model.peft_type, "value", None)
        raise ConfigError(f"accelerate is for PEFT's {' and '.join(PEFT_TYPES)}; this model has {kind}.")
    base = peft_model.get_base_model()
    if not isinstance(base, PreTrainedModel):
        raise ConfigError(f"the base of this PeftModel, {type(base).__name__}, is no model of Transformers.")
    bank = attach(base)
    try:
        adapters = _Adapters(peft_model, bank)
        adapters.follow()
    except BaseException:
        bank.detach()
        raise
    bank.when_detached(adapters.close)
    bank.when_detached(_replace(peft_model, "forward", _routed(peft_model, "__call__", adapters)))
    bank.when_detached(_replace(peft_model, "generate", _routed(peft_model, "generate", adapters)))
    bank.when_detached(_replace(peft_model, "disable_adapter", adapters.disabled))
    return bank


class AdapterSource:
    """A `PrefixSource`: what a PeftModel's own prompt encoder makes for an adapter now."""

    def __init__(self, peft_model: Any, name: str, sites: Sequence[Site]) -> None:
        self.peft_model = peft_model
        self.name = name
        self.sites = tuple(sites)
        self._layout.check_fits(self.sites)

    @property
    def training(self) -> bool:
        """Whether PEFT's model, and so its encoder, trains now."""
        return bool(self.peft_model.training)

    def keys_and_values(self, dropout: bool = True) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Return key and value `(kv_head, token, head_dim)` by site path; PEFT's encoders have no dropout."""
        encoder = self.peft_model.prompt_encoder[self.name]
        flat = encoder.embedding.weight
        if not self.peft_model.peft_config[self.name].inference_mode:  # where the embedding holds what the MLP made
            tokens = torch.arange(self._layout.num_virtual_tokens, device=flat.device)
            flat = encoder(tokens[None])[0]
        return self._layout.deal(flat, self.sites)

    @property
    def _layout(self) -> PeftLayout:
        return PeftLayout.of(vars(self.peft_model.peft_config[self.name]))


class _Adapters:
    """The adapters of a PeftModel, followed by a bank under the same names."""

    def __init__(self, peft_model: Any, bank: PrefixBank) -> None:
        self.peft_model = peft_model
        self.bank = bank
        self.base: Any = bank.model
        self.sites = peft_sites(self.base, bank.sites)
        self._followed: dict[str, Any] = {}
        self._hooks: dict[nn.Module, Any] = {}
        self._lock = threading.Lock()

    def follow(self) -> None:
        """Take up the adapters that PEFT has now, and drop those that it has no more."""
        with self._lock:
            if self._followed != self.peft_model.peft_config:
                self._catch_up(self.peft_model.peft_config)

    def _catch_up(self, configs: Mapping[str, Any]) -> None:
        for name in [name for name, config in self._followed.items() if configs.get(name) is not config]:
            self.bank.remove(name)
            del self._followed[name]
        for name, config in configs.items():
            if name not in self._followed:
                self.bank.add(name, AdapterSource(self.peft_model, name, self.sites))
                self._followed[name] = config
        for module in self.base.modules():
            if isinstance(module, _wrapper()) and module not in self._hooks:
                self._hooks[module] = module.register_forward_pre_hook(self._choose_heads, with_kwargs=True)

    @contextmanager
    def using(self, adapter_names: Sequence[str] | None) -> Iterator[None]:
        """Use PEFT's active adapter, or one for each row, for as long as the context lasts."""
        self.follow()
        selection: Selection = self.peft_model.active_adapter or None
        if adapter_names is not None:
            selection = [None if name == BASE else name for name in adapter_names]
        with self.bank.use(None if self.peft_model._adapters_disabled else selection):
            yield

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Use none for as long as the context lasts; PEFT's own way goes past the hooks of the base."""
        before, self.peft_model._adapters_disabled = self.peft_model._adapters_disabled, True
        try:
            yield
        finally:
            self.peft_model._adapters_disabled = before

    def close(self) -> None:
        """Leave the heads to PEFT alone."""
        for hook in self._hooks.values():
            hook.remove()

    def _choose_heads(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let each row have the head of its own adapter, as PEFT does beside LoRA."""
        selection = self.bank.selection()
        if selection is None or isinstance(selection, str):
            return None
        names = [name if name in self._followed else BASE for name in names_of(selection)]
        return args, {**kwargs, "adapter_names": rows_of(names, args[0].shape[0])}


def _wrapper() -> type[nn.Module]:
    """Return PEFT's class for modules that are trained beside an adapter, each adapter with a copy of its own."""
    from peft.utils.other import AuxiliaryTrainingWrapper

    return AuxiliaryTrainingWrapper


def _routed(peft_model: Any, method: str, adapters: _Adapters) -> Callable[..., Any]:
    """Return what does as a PeftModel's `forward` or `generate`, by a method of the base with its adapters in use."""
    import peft

    original = peft_model.generate if method == "generate" else peft_model.forward
    signature = inspect.signature(original)
    ignores_types = isinstance(peft_model, (peft.PeftModelForCausalLM, peft.PeftModelForSeq2SeqLM))

    @functools.wraps(original)
    def run(*args: Any, **kwargs: Any) -> Any:
        inputs = dict(signature.bind(*args, **kwargs).arguments)
        inputs |= inputs.pop("kwargs", {})
        inputs.pop("task_ids", None)  # for another of PEFT's methods
        if ignores_types and inputs.pop("token_type_ids", None) is not None:
            warnings.warn("PEFT ignores token_type_ids here, and so does antefix.", stacklevel=2)
        if method == "generate" and "generation_config" in vars(peft_model):
            inputs.setdefault("generation_config", peft_model.generation_config)
        with adapters.using(inputs.pop("adapter_names", None)):
            return getattr(adapters.base, method)(*inputs.pop("args", ()), **inputs)

    return run


def _replace(peft_model: Any, method: str, new: Callable[..., Any]) -> Callable[[], None]:
    """Give a PeftModel a method of its own, as PEFT does it in `disable_adapter`; the returned function undoes it."""
    own = vars(peft_model).get(method)
    setattr(peft_model, method, new)

    def undo() -> None:
        delattr(peft_model, method)
        if own is not None:
            setattr(peft_model, method, own)

    return undo
