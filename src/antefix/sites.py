"""Where a prefix can stand: the attention modules of a model, found by watching one tiny forward.

No table of architectures: every module that dispatches through Transformers' `AttentionInterface` is a site, and
what it passes there tells its number of key/value heads, its dimensions and its kind.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from antefix.errors import UnsupportedModelError
from antefix.observation import AttentionCall, device_of, observe_attention, observe_text

Kind: TypeAlias = Literal["encoder", "decoder", "cross"]
KINDS: tuple[Kind, ...] = ("encoder", "decoder", "cross")
SEEN_OR_HEARD = frozenset({"pixel_values", "input_features", "input_values"})
"""What towers read: images and sounds."""


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


def discover_sites(model: PreTrainedModel, example_inputs: Mapping[str, Any] | None = None) -> tuple[Site, ...]:
    """Find the sites of a model by running one forward of a few tokens, or of `example_inputs`.

    Raises `UnsupportedModelError` if no attention dispatches through `AttentionInterface`.
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
    _refuse_values_apart(model, calls)
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


def stack_path(model: PreTrainedModel, site: Site) -> str:
    """Return the path of a site's stack: the innermost `PreTrainedModel` around it, which is given its positions."""
    parts = site.path.split(".")
    around = (".".join(parts[:end]) for end in range(len(parts) - 1, -1, -1))
    return next(path for path in around if isinstance(model.get_submodule(path), PreTrainedModel))


def text_sites(model: PreTrainedModel, sites: Iterable[Site]) -> tuple[Site, ...]:
    """Return the sites in stacks that read tokens, which a forward of text alone reaches, too."""
    return tuple(site for site in sites if reads_tokens(model.get_submodule(stack_path(model, site))))


def reads_tokens(stack: nn.Module) -> bool:
    """Return whether a stack reads the tokens of a text, rather than an image or a sound."""
    parameters = inspect.signature(stack.forward).parameters
    return "input_ids" in parameters or "inputs_embeds" in parameters


def shares_keys(model: PreTrainedModel, site: Site) -> bool:
    """Return whether a site's attention takes its keys and values from another layer, and its cache with them."""
    return bool(getattr(model.get_submodule(site.path), "is_kv_shared_layer", False))


def _refuse_own_branches(module: nn.Module) -> None:
    """Refuse attention that asks for its implementation by name: under antefix's name it would take another branch."""
    source = inspect.getsource(type(module).forward)
    asks = re.search(r"_attn_implementation\s*(==|!=|in\b|not in\b)", source)
    if asks and not hasattr(module, "reorder_and_upcast_attn"):  # GPT-2's question is answered in base_attention
        raise UnsupportedModelError(
            f"{type(module).__name__} behaves differently by the name of its attention implementation, so a prefix "
            "cannot be put into it without changing the base."
        )


def _refuse_values_apart(model: PreTrainedModel, calls: Iterable[AttentionCall]) -> None:
    """Refuse attention that reads parts of its values one after another by the same keys, as DiffLlama's does."""
    before: dict[str, AttentionCall] = {}
    for call in calls:
        last = before.setdefault(call.path, call)
        if last.key is call.key and last.value is not call.value:
            raise UnsupportedModelError(
                f"{type(model.get_submodule(call.path)).__name__} reads several values by the same keys, one after "
                "another, and a prefix has one for each of its keys."
            )


def _places(model: PreTrainedModel) -> dict[nn.Module, Kind]:
    """Return what lies in the encoder of an encoder-decoder, and what in its decoder, whatever it says of itself.

    So does what writes text about images or sounds: its decoder may look ahead among the tokens of an image and of a
    question, and its tower hide what comes later in a sound.
    """
    decoder = _innermost_decoder(model)
    parts: list[tuple[Kind, nn.Module]] = []
    if model.config.is_encoder_decoder:
        parts = [("encoder", model.get_encoder()), ("decoder", decoder)]
    elif model.can_generate() and decoder not in (model, model.base_model):
        parts = [*(("encoder", tower) for tower in _towers(model, decoder)), ("decoder", decoder)]
    places: dict[nn.Module, Kind] = {}
    for kind, part in parts:
        if part is not model:  # which has none by a name that Transformers knows
            places |= dict.fromkeys(part.modules(), kind)
    return places


def _towers(model: PreTrainedModel, decoder: nn.Module) -> Iterator[nn.Module]:
    """Go through the models inside of one that read images or sounds, and not its decoder, too."""
    for module in model.modules():
        reads = module.main_input_name if isinstance(module, PreTrainedModel) else None
        if reads in SEEN_OR_HEARD and decoder not in module.modules():
            yield module


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
    """Show a model a few tokens; raises `UnsupportedModelError` if it asks for more than those."""
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
    ordinary = [token for token in range(min(8, getattr(config, "vocab_size", 8))) if token not in special][:3]
    ids = torch.tensor([ordinary], device=device_of(model))
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :2]
    return inputs
