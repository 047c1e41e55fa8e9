"""Which attention function a module calls: its own copy of the config names another than the base's, until undone.

Transformers looks the function up by a name in the module's config, so neither the module's code nor its class is
touched.
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from antefix.errors import UnsupportedModelError

AttentionFunction: TypeAlias = Callable[..., tuple[Tensor, Tensor | None]]


@contextmanager
def switched(module: nn.Module, name: str, function: AttentionFunction, **attributes: object) -> Iterator[None]:
    """Let `function` compute a module's attention, by a copy of its config that it alone has."""
    undo = switch(module, name, function, **attributes)
    try:
        yield
    finally:
        undo()


def switch(module: nn.Module, name: str, function: AttentionFunction, **attributes: object) -> Callable[[], None]:
    """Do what `switched` does until the returned function is called."""
    implementation = implementation_of(module)
    full_name = f"{name}|{implementation}"
    AttentionInterface.register(full_name, function)
    if implementation in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(full_name, ALL_MASK_ATTENTION_FUNCTIONS[implementation])
    original: Any = module.config
    own = copy.copy(original)
    # The property's setter would change the sub-configs too, and the copy shares those with the base.
    own.__dict__["_attn_implementation_internal"] = full_name
    # Looked up once and kept here, because torch.compile warns of a cached function.
    own.__dict__.update(attributes, antefix_base=original, antefix_interfaces=_interfaces(type(module)))
    own.__dict__["to_dict"] = original.to_dict  # what it is written as, and printed, has none of these
    module.config = own

    def undo() -> None:
        module.config = original

    return undo


def is_switched(module: nn.Module) -> bool:
    """Return whether a module has a config of antefix's."""
    return hasattr(getattr(module, "config", None), "antefix_base")


def implementation_of(module: nn.Module) -> str | None:
    """Return the base's attention implementation at a module, as it is now, behind any config of antefix's."""
    config: Any = getattr(module, "config", None)
    if not isinstance(config, PreTrainedConfig):  # a module of IDEFICS keeps a number under that name
        return None
    while "antefix_base" in (own := settings_of(config)):
        config = own["antefix_base"]
    return own.get("_attn_implementation_internal")


def settings_of(config: object) -> dict[str, Any]:
    """Return what a config itself holds, not by its own lookup, which takes longer than a token's attention."""
    if torch.compiler.is_compiling():  # where the short way is unknown, and nothing is looked up twice
        return vars(config)
    own: dict[str, Any] = object.__getattribute__(config, "__dict__")
    return own


def is_causal(module: nn.Module, arguments: Mapping[str, Any]) -> bool:
    """Return whether an attention module hides later keys, by what it passes or by what it is."""
    passed = arguments.get("is_causal")
    return bool(getattr(module, "is_causal", True) if passed is None else passed)


def base_attention(module: nn.Module) -> AttentionFunction:
    """Return the attention function that the base model would call at this module, which must be switched."""
    implementation = implementation_of(module)
    if implementation == "eager" and getattr(module, "reorder_and_upcast_attn", False):  # which is computed by a method
        upcast = cast(Any, module)._upcast_and_reordered_attn
        return lambda _, query, key, value, mask, **__: upcast(query, key, value, mask)
    for interface, eager in settings_of(module.config)["antefix_interfaces"]:
        function = interface.get_interface(implementation, eager)
        if function is not None:
            return cast(AttentionFunction, function)
    raise UnsupportedModelError(
        f"{type(module).__name__} has no '{implementation}' attention function that a prefix could extend; "
        "load the model with attn_implementation='sdpa'."
    )


def function_under(config: object, module: nn.Module) -> AttentionFunction:
    """Return the attention function that a module calls under a config."""
    name = settings_of(config)["_attn_implementation_internal"]
    found = (interface.get_interface(name, eager) for interface, eager in _interfaces(type(module)))
    return cast(AttentionFunction, next(function for function in found if function is not None))


def _interfaces(cls: type[Any]) -> list[tuple[Any, Any]]:
    """Return where the code of an attention class, and of those it inherits from, looks attention functions up.

    With each goes what it takes as the function called 'eager': a file may have several, for text and for images.
    """
    modeling = (sys.modules[base.__module__] for base in cls.__mro__)
    return [
        (module.ALL_ATTENTION_FUNCTIONS, getattr(module, _name_of_eager(cls.forward), None))
        for module in modeling
        if hasattr(module, "ALL_ATTENTION_FUNCTIONS")
    ]


@functools.cache
def _name_of_eager(forward: Callable[..., Any]) -> str:
    named = re.search(r"\.get_interface\([^,]+,\s*(\w+)\s*,?\s*\)", inspect.getsource(forward))
    return named[1] if named else "eager_attention_forward"
