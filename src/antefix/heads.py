"""Modules of the base model that a prefix replaces by trained copies of its own, such as a classification head.

P-tuning v2 (Liu et al. 2022, arXiv 2110.07602) trains the head beside the prefix. The base's module stays as it is:
while a prefix is in use, its copy computes instead, for the rows that use it.
"""

from __future__ import annotations

import copy
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from antefix.attention.carrier import Carrier
from antefix.dispatch import is_switched
from antefix.errors import ConfigError, PrefixMismatchError
from antefix.replacement import Replacement, is_float
from antefix.selection import Selection, names_of, rows_of
from antefix.sharding import whole
from antefix.trained import MODULE_NAME

_MOVING = threading.Lock()  # a thread that finds a copy half moved waits for the rest


class Heads:
    """The trained copies of one base model's modules, by the name of their prefix."""

    def __init__(self, model: PreTrainedModel, selection: Callable[[], Selection]) -> None:
        self.model = model
        self.selection = selection
        self._in_use = Carrier(self._selected)
        self._copies: dict[str, dict[str, nn.Module]] = {}
        self._replacements: list[Replacement] = []
        self._layers: list[nn.Module] = []
        """What lies around the replaced modules and may be checkpointed."""
        self._hooks: list[RemovableHandle] = []

    def add(self, name: str, modules: Sequence[str]) -> list[nn.Module]:
        """Begin trainable copies, in fp32, of the modules with these paths or last parts of a path.

        Raises `ConfigError` if a name fits none, more than one, or one that holds attention, no parameters, or what
        a prefix file does not keep, and where two overlap.
        """
        paths = [self._find(module) for module in modules]
        if overlap := _overlap(paths):
            raise ConfigError(f"trainable_modules names {overlap}, which overlap; name only one of them.")
        copies = {path: self._copy(path).float().requires_grad_(True) for path in paths}
        self._copies[name] = copies
        return list(copies.values())

    def load(self, name: str, parameters: Mapping[str, Tensor]) -> None:
        """Add the modules of a prefix by their tensors' full names in the model.

        Raises `PrefixMismatchError` if the model has no such module, or one of another shape, and where two overlap.
        """
        by_path: dict[str, dict[str, Tensor]] = {}
        for full_name, tensor in parameters.items():
            path, _, parameter = full_name.partition(":")
            by_path.setdefault(path, {})[parameter] = tensor
        if overlap := _overlap(by_path):
            raise PrefixMismatchError(f"the prefix brings trained modules {overlap}, which overlap.")
        loaded = {path: self._load(path, tensors) for path, tensors in by_path.items()}
        self._copies[name] = loaded

    def parameters(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a prefix's modules as `load` takes them."""
        return {
            f"{path}:{parameter}": whole(tensor.detach())
            for path, module in self._copies.get(name, {}).items()
            for parameter, tensor in module.state_dict().items()
        }

    def modules(self, name: str) -> dict[str, nn.Module]:
        """Return the modules of a prefix, by the path of the base's own."""
        return dict(self._copies.get(name, {}))

    def check_in_use(self, name: str) -> None:
        """Raise `ConfigError` if a module that a prefix brings a copy of was replaced in the model since."""
        for path in self._copies.get(name, {}):
            parts = set(self.model.get_submodule(path).modules())
            here = {replacement.module for replacement in self._replacements if replacement.path == path}
            if here.isdisjoint(parts) and not any(map(self._is_replaced, parts)):
                raise ConfigError(
                    f"'{path}' of {type(self.model).__name__} was replaced after the prefix '{name}' was added, which "
                    "brings one in its place; replace modules first, and then add the prefix."
                )

    def remove(self, name: str) -> None:
        """Drop the modules of a prefix."""
        self._copies.pop(name, None)

    def close(self) -> None:
        """Let the base's own modules compute again."""
        for replacement in self._replacements:
            replacement.undo()
        for hook in self._hooks:
            hook.remove()
        self._in_use.leave_checkpoints(self._layers)
        self._replacements, self._layers, self._hooks = [], [], []

    def _find(self, wanted: str) -> str:
        paths = [path for path in base_modules(self.model) if path == wanted or path.endswith(f".{wanted}")]
        if len(paths) != 1:
            found = " and ".join(f"'{path}'" for path in paths) or "none"
            raise ConfigError(
                f"trainable_modules names '{wanted}', which must be one module of {type(self.model).__name__}; "
                f"it has {found}."
            )
        if self._holds_attention(paths[0]):
            raise ConfigError(f"the trainable module '{paths[0]}' holds attention; name a head.")
        module = _computing(self.model.get_submodule(paths[0]))
        if not _can_be_called(module):
            raise ConfigError(f"the trainable module '{paths[0]}' holds others and computes nothing itself; name one.")
        if not _has_parameters(module):
            raise ConfigError(f"the trainable module '{paths[0]}' has no parameters to train; name a head that has.")
        if odd := [name for name, held in module.state_dict().items() if not is_float(held)]:
            raise ConfigError(
                f"the trainable module '{paths[0]}' holds '{odd[0]}', which is no floating-point tensor, and a prefix "
                "file keeps no other; name a part of it without that."
            )
        return paths[0]

    def _holds_attention(self, path: str) -> bool:
        return any(map(is_switched, self.model.get_submodule(path).modules()))

    def _copy(self, path: str) -> nn.Module:
        """Copy the base's module, and let the copies of the prefixes in use compute from now on."""
        module = self.model.get_submodule(path)
        self._replace(path, module)
        copied = copy.deepcopy(_computing(module))  # while other threads go on to compute with it
        for part in copied.modules():
            if self._is_replaced(part):
                del cast(Any, part).forward
        return copied

    def _replace(self, path: str, module: nn.Module) -> None:
        """Let the copies of the prefixes in use compute in place of this module."""
        if self._is_replaced(module):
            return
        layers = self._checkpointed_around(module)

        # A function, not a method: a deep copy of a layer with this hook leaves all heads as they are.
        def remember(layer: nn.Module, args: Any) -> None:
            self._in_use.enter_checkpoints([layer])

        self._hooks += [layer.register_forward_pre_hook(remember) for layer in layers]
        self._layers += layers
        parents = itertools.accumulate(path.split(".")[:-1], "{}.{}".format)
        is_in_attention = any(is_switched(self.model.get_submodule(parent)) for parent in parents)
        choices = functools.partial(self._choices, path)
        self._replacements.append(Replacement(path, module, choices, self._only_rows, is_in_attention))

    def _choices(self, path: str) -> list[nn.Module | None]:
        """Return the copy that computes in place of the module at this path, for each prefix in use."""
        return [copies.get(path) for copies in self._in_use.held]

    def _only_rows(self, rows: Sequence[int], batch: int) -> AbstractContextManager[None]:
        """Let what computes in this context see the choices of these rows alone."""
        held = rows_of(self._in_use.held, batch)
        return self._in_use.holding([held[row] for row in rows])

    def _checkpointed_around(self, module: nn.Module) -> list[nn.Module]:
        """Return what holds a module and may be checkpointed, now or later, so that it runs again in the backward."""
        others = (other for other in self.model.modules() if other is not module)
        checkpointed = [other for other in others if hasattr(other, "gradient_checkpointing")]
        return [outer for outer in checkpointed if any(part is module for part in outer.modules())]

    def _is_replaced(self, module: nn.Module) -> bool:
        return any(replacement.is_of(module) for replacement in self._replacements)

    def _load(self, path: str, tensors: Mapping[str, Tensor]) -> nn.Module:
        modules = base_modules(self.model)
        is_there = path in modules and _can_be_called(modules[path]) and _has_parameters(modules[path])
        if not is_there or self._holds_attention(path):
            raise PrefixMismatchError(f"the prefix brings a trained '{path}', which is no head of this model.")
        base = _computing(modules[path])
        expected = {name: tuple(tensor.shape) for name, tensor in base.state_dict().items()}
        given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if given != expected:
            raise PrefixMismatchError(
                f"the prefix brings a trained '{path}' with tensors {given}, but this model's has {expected}."
            )
        with torch.inference_mode(False):  # what is kept may be of use to a training step, too
            module = self._copy(path).requires_grad_(False)
            module.to(next(iter(tensors.values())).dtype).load_state_dict(dict(tensors))
        module.register_forward_pre_hook(_follow_inputs, with_kwargs=True)
        module.register_forward_pre_hook(_following_mode(base, module))
        return module

    def _selected(self) -> Sequence[Mapping[str, nn.Module]]:
        """Return the copies, by path, of each prefix that this thread uses now, in the order of its selection."""
        return [self._copies.get(name or "", {}) for name in names_of(self.selection())]


def base_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a base model by path, without those that train beside them."""
    return {path: module for path, module in model.named_modules() if path.split(".")[0] != MODULE_NAME}


def _overlap(paths: Iterable[str]) -> str | None:
    """Return two paths of which one is the other or lies inside it, as a sentence names them, if there are such."""
    for outer, inner in itertools.pairwise(sorted(f"{path}." for path in paths)):  # what lies inside comes right after
        if inner.startswith(outer):
            return f"'{outer[:-1]}' and '{inner[:-1]}'"
    return None


def _follow_inputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Bring a loaded copy to where its inputs are, once: it is no part of the model, and does not move with it."""
    device = next((value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
    tensors = itertools.chain(module.parameters(), module.buffers())
    if device is not None and any(tensor.device != device for tensor in tensors):
        with _MOVING, torch.inference_mode(False):  # what is kept may be of use to a training step, too
            module.to(device)


def _following_mode(base: nn.Module, copied: nn.Module) -> Callable[..., None]:
    """Return a hook that lets a loaded copy train or evaluate as the base's module does then, part by part.

    It is no part of the model, so the model's `train` and `eval` pass it by.
    """
    there = {name for name, _ in copied.named_modules()}
    parts = {name: part for name, part in base.named_modules() if name in there}

    # The copy is handed over, not kept: in a circle with its hook it would outlive its removal.
    def follow(module: nn.Module, args: tuple[Any, ...]) -> None:
        for name, part in parts.items():
            own = module.get_submodule(name)
            if own.training != part.training:
                own.training = part.training

    return follow


def _computing(module: nn.Module) -> nn.Module:
    """Return the module that computes: of a head that PEFT wraps to train copies beside it, the copy in use."""
    copies = getattr(module, "modules_to_save", None)
    if not isinstance(copies, nn.ModuleDict):
        return module
    wrapper = cast(Any, module)
    in_use = [] if wrapper.disable_adapters else [copies[name] for name in wrapper.active_adapters if name in copies]
    return next(iter(in_use), wrapper.original_module)


def _can_be_called(module: nn.Module) -> bool:
    """Return whether a module can be called, which a list of modules cannot."""
    return type(module).forward is not nn.Module.forward


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
