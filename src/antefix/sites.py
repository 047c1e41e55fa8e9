"""Where a prefix can stand: the attention modules of a model, found by watching one tiny forward.

No table of architectures: every module that dispatches through Transformers' `AttentionInterface` is a site, and
what it passes there tells its number of key/value heads, its dimensions and its kind.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Lock, get_ident
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from antefix.dispatch import base_attention, function_under, implementation_of, is_causal, settings_of, switched
from antefix.errors import UnsupportedModelError

Kind: TypeAlias = Literal["encoder", "decoder", "cross"]
KINDS: tuple[Kind, ...] = ("encoder", "decoder", "cross")
KEYWORD = "antefix"
"""The keyword of a forward under which everything about its prefixes travels down to the attention."""

_OBSERVING = Lock()
"""Held for as long as modules of an observed model have other configs."""


@dataclass(frozen=True)
class Site:
    """One attention module that can carry a prefix; dimensions count numbers a head and token."""

    path: str
    kind: Kind
    layer: int
    num_key_value_heads: int
    key_dim: int
    value_dim: int

    @property
    def width(self) -> int:
        """How many numbers one virtual token holds at this site, key and value together."""
        return self.num_key_value_heads * (self.key_dim + self.value_dim)


@dataclass(frozen=True)
class AttentionCall:
    """What one attention module passed to the attention function: tensors `(batch, head, token, dim)`."""

    path: str
    query: Tensor
    key: Tensor
    value: Tensor
    is_decoders: bool
    keyword_arrived: bool


def discover_sites(model: PreTrainedModel, example_inputs: Mapping[str, Any] | None = None) -> tuple[Site, ...]:
    """Find the sites of a model by running one forward of a few tokens, or of `example_inputs`.

    Raises `UnsupportedModelError` where no attention dispatches through `AttentionInterface`.
    """
    return sites_and_cut_off(model, example_inputs)[0]


def sites_and_cut_off(
    model: PreTrainedModel, example_inputs: Mapping[str, Any] | None = None
) -> tuple[tuple[Site, ...], frozenset[str]]:
    """Do what `discover_sites` does; return also the paths of the sites that a keyword of the forward never reaches."""
    calls = observe_attention(model, example_inputs) if example_inputs else _observe_tokens(model)
    if not calls:
        raise UnsupportedModelError(
            f"{type(model).__name__} computes its attention itself instead of dispatching it through Transformers' "
            "AttentionInterface, so a prefix cannot reach it; supported are the models that do, such as Llama, Qwen, "
            "Gemma, Mistral, GPT-2, BERT, T5 and BART."
        )
    for call in calls:
        _refuse_own_branches(model.get_submodule(call.path))
    if model.config.is_encoder_decoder and all(call.query.shape[2] == call.key.shape[2] for call in calls):
        advice = "attach to the whole model" if example_inputs is None else "give sequences of two lengths"
        raise UnsupportedModelError(
            f"every attention of {type(model).__name__} has as many keys as queries, which hides what is "
            f"cross-attention; {advice}."
        )
    first: dict[str, AttentionCall] = {}
    for call in calls:
        first.setdefault(call.path, call)
    cut_off = frozenset(call.path for call in calls if not call.keyword_arrived)
    places = _places(model)
    return tuple(_site(call, places.get(model.get_submodule(call.path))) for call in first.values()), cut_off


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


def stack_path(model: PreTrainedModel, site: Site) -> str:
    """Return the path of a site's stack: the innermost `PreTrainedModel` around it, which is given its positions."""
    parts = site.path.split(".")
    around = (".".join(parts[:end]) for end in range(len(parts) - 1, -1, -1))
    return next(path for path in around if isinstance(model.get_submodule(path), PreTrainedModel))


def readers(model: PreTrainedModel, sites: Iterable[Site]) -> tuple[Site, ...]:
    """Return the sites in stacks that read tokens, which a forward of text alone reaches, too."""
    return tuple(site for site in sites if reads_tokens(model.get_submodule(stack_path(model, site))))


def reads_tokens(stack: nn.Module) -> bool:
    """Tell whether a stack reads the tokens of a text, rather than an image or a sound."""
    parameters = inspect.signature(stack.forward).parameters
    return "input_ids" in parameters or "inputs_embeds" in parameters


def device_of(model: PreTrainedModel) -> torch.device:
    """Return where a model computes: where its parameters lie, or where Accelerate brings them from memory or disk."""
    if model.device.type != "meta":
        return model.device
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    return torch.device(next((device for device in devices if device is not None), "meta"))


def shares_keys(model: PreTrainedModel, site: Site) -> bool:
    """Tell whether a site's attention takes its keys and values from another layer, and its cache with them."""
    return bool(getattr(model.get_submodule(site.path), "is_kv_shared_layer", False))


def takes_keywords(module: nn.Module) -> bool:
    """Tell whether a module's forward takes keywords that it does not know."""
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


def _refuse_own_branches(module: nn.Module) -> None:
    """Refuse attention that asks for its implementation by name: under antefix's name it would take another branch."""
    source = inspect.getsource(type(module).forward)
    asks = re.search(r"_attn_implementation\s*(==|!=|in\b|not in\b)", source)
    if asks and not hasattr(module, "reorder_and_upcast_attn"):  # GPT-2's question is answered in base_attention
        raise UnsupportedModelError(
            f"{type(module).__name__} behaves differently by the name of its attention implementation, so a prefix "
            "cannot be put into it without changing the base."
        )


def _is_decoders(module: nn.Module, arguments: Mapping[str, Any]) -> bool:
    """Tell whether self-attention is a decoder's: it says so, or says nothing and takes a cache."""
    if arguments.get("is_causal") is None and not hasattr(module, "is_causal"):
        return not {"past_key_values", "cache"}.isdisjoint(inspect.signature(module.forward).parameters)
    return is_causal(module, arguments) or bool(getattr(module, "is_decoder", False))


def _places(model: PreTrainedModel) -> dict[nn.Module, Kind]:
    """Return what lies in the encoder of an encoder-decoder, and what in its decoder, whatever it says of itself.

    So does what writes text about images: its decoder may look ahead among the tokens of an image and of a question.
    """
    decoder = _innermost_decoder(model)
    parts: dict[Kind, nn.Module] = {}
    if model.config.is_encoder_decoder:
        parts = {"encoder": model.get_encoder(), "decoder": decoder}
    elif model.can_generate() and decoder is not model.base_model:
        parts = {"decoder": decoder}
    places: dict[nn.Module, Kind] = {}
    for kind, part in parts.items():
        if part is not model:  # which has none by a name that Transformers knows
            places |= dict.fromkeys(part.modules(), kind)
    return places


def _innermost_decoder(model: PreTrainedModel) -> nn.Module:
    """Return the decoder alone: that of a model of images and text may be a whole encoder-decoder at first."""
    part: Any = model
    while hasattr(part, "get_decoder") and (inner := part.get_decoder()) is not part:
        part = inner
    return cast(nn.Module, part)


def _site(call: AttentionCall, place: Kind | None) -> Site:
    cross = call.query.shape[2] != call.key.shape[2]
    kind: Kind = "cross" if cross else place or ("decoder" if call.is_decoders else "encoder")
    number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", call.path)
    return Site(
        path=call.path,
        kind=kind,
        layer=int(number[1]) if number else 0,
        num_key_value_heads=call.key.shape[1],
        key_dim=call.key.shape[3],
        value_dim=call.value.shape[3],
    )


def _observe_tokens(model: PreTrainedModel) -> list[AttentionCall]:
    """Show a model a few tokens; raises `UnsupportedModelError` where it asks for more than those."""
    inputs = _tiny_inputs(model)
    try:
        return observe_text(model, inputs)
    except UnsupportedModelError:
        raise
    except Exception as error:  # whatever a model raises that misses an image, or has no place for so few tokens
        raise UnsupportedModelError(
            f"{type(model).__name__} does not run on a few token ids alone ({type(error).__name__}: {error}); show "
            "antefix one batch of what it reads: attach(model, example_inputs=batch)."
        ) from error


def _tiny_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """Three tokens for an encoder, two for its decoder: lengths that tell cross-attention from self-attention."""
    if model.main_input_name != "input_ids":
        raise UnsupportedModelError(
            f"{type(model).__name__} reads '{model.main_input_name}', not token ids; show antefix one batch of it: "
            "attach(model, example_inputs=batch)."
        )
    config = model.config.get_text_config()
    marks = [getattr(config, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")]
    special = {token for mark in marks for token in (mark if isinstance(mark, list) else [mark])}
    ordinary = [token for token in range(min(8, config.vocab_size)) if token not in special][:3]
    ids = torch.tensor([ordinary], device=device_of(model))
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :2]
    return inputs
