"""Watching the attention of a model: what each of its modules passes on in one forward, and whether a keyword arrives.

Every module that dispatches through Transformers' `AttentionInterface` is watched, under whatever name of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Lock, get_ident
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from antefix.dispatch import base_attention, function_under, implementation_of, is_causal, settings_of, switched
from antefix.errors import UnsupportedModelError

KEYWORD = "antefix"
"""The keyword of a forward under which everything about its prefixes travels down to the attention."""

_OBSERVING = Lock()
"""Held for as long as modules of an observed model have other configs."""


@dataclass(frozen=True)
class AttentionCall:
    """What one attention module passed to the attention function: tensors `(batch, head, token, dim)`."""

    path: str
    query: Tensor
    key: Tensor
    value: Tensor
    is_decoders: bool
    keyword_arrived: bool


def observe_text(model: PreTrainedModel, inputs: Mapping[str, Any]) -> list[AttentionCall]:
    """Do what `observe_attention` does with token ids; the head, which may want more than those, is left out."""
    return observe_attention(model, inputs, cast(PreTrainedModel, model.base_model))


def observe_attention(
    model: PreTrainedModel, inputs: Mapping[str, Any], part: PreTrainedModel | None = None
) -> list[AttentionCall]:
    """Run one forward of the bare base model, or of a part of it, without gradients; return its attention calls.

    Raises `UnsupportedModelError` for a model without numbers whose forward asks for some, and for one that hands the
    keyword of prefixes to a module that takes none.
    """
    calls: list[AttentionCall] = []
    with _OBSERVING, ExitStack() as stack, torch.no_grad():
        stack.enter_context(evaluation_mode(model))
        for path, module in model.named_modules():
            if isinstance(module, PreTrainedModel):
                stack.enter_context(_send_probe(module))
            elif implementation_of(module) is not None:
                attributes = {"antefix_path": path, "antefix_note": calls.append, "antefix_observer": get_ident()}
                stack.enter_context(switched(module, "antefix-observe", _observe, **attributes))
        try:
            (part or model)(**inputs)
        except TypeError as error:
            if f"'{KEYWORD}'" not in str(error):
                raise
            raise UnsupportedModelError(
                f"{type(model).__name__} hands what it is given to a module that does not take it, so nothing about a "
                f"prefix reaches its attention: {error}."
            ) from error
        except RuntimeError as error:
            if device_of(model).type != "meta":
                raise
            raise UnsupportedModelError(
                f"{type(model).__name__} looks at numbers before it attends, and a configuration alone has none; load "
                "the model with its weights, and its prefixes by PrefixBank.load."
            ) from error
    return calls


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, part by part, and on again where it was."""
    training = [part for part in model.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def device_of(model: PreTrainedModel) -> torch.device:
    """Return where a model computes: where its parameters lie, or where Accelerate brings them from memory or disk."""
    if model.device.type != "meta":
        return model.device
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    return torch.device(next((device for device in devices if device is not None), "meta"))


def takes_keywords(module: nn.Module) -> bool:
    """Return whether a module's forward takes keywords that it does not know."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(module.forward).parameters.values())


def _observe(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Note the call, then compute what the base would; calls of other threads go where they would have gone."""
    config = cast(Any, module.config)
    own = settings_of(config)
    if own.get("antefix_observer") != get_ident():
        theirs = function_under(own["antefix_base"] if "antefix_observer" in own else config, module)
        return theirs(module, query, key, value, attention_mask, *args, **kwargs)
    arrived = kwargs.pop(KEYWORD, None) is not None
    config.antefix_note(AttentionCall(config.antefix_path, query, key, value, _is_decoders(module, kwargs), arrived))
    return base_attention(module)(module, query, key, value, attention_mask, *args, **kwargs)


@contextmanager
def _send_probe(module: PreTrainedModel) -> Iterator[None]:
    """Send the keyword down from a stack, as the bank will, to see which attention modules it reaches."""
    if not takes_keywords(module):
        yield
        return
    observer = get_ident()

    def send(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, KEYWORD: "probe"} if get_ident() == observer else kwargs

    with module.register_forward_pre_hook(send, with_kwargs=True, prepend=True):
        yield


def _is_decoders(module: nn.Module, arguments: Mapping[str, Any]) -> bool:
    """Return whether self-attention is a decoder's: it says so, or says nothing and takes a cache."""
    if arguments.get("is_causal") is None and not hasattr(module, "is_causal"):
        return not {"past_key_values", "cache"}.isdisjoint(inspect.signature(module.forward).parameters)
    return is_causal(module, arguments) or bool(getattr(module, "is_decoder", False))
