"""What a prefix starts from: noise, zeros, or the keys and values of real text.

Real text is captured at the attention of each site, not from the cache: a sliding-window cache would keep the
window only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from antefix.config import PrefixConfig
from antefix.errors import ConfigError, UnsupportedModelError
from antefix.observation import device_of, observe_text
from antefix.prefix import Prefix
from antefix.shapes import Int
from antefix.sites import Site

DEFAULT_TEXT = (
    "Read the input with care, then write the answer that the task asks for. Keep to the form of the examples, "
    "use what the input says, and add nothing that it does not say.\n"
)
"""The instruction that a prefix starts from when no text is given: its keys and values are of the size that the model's
own have, as noise need not be."""

_OTHERWISE = "set init='random' or init='zero', or leave its kind out of PrefixConfig.sites."


def initial_prefix(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, config: PrefixConfig, sites: Sequence[Site]
) -> Prefix | None:
    """Return what a prefix of this config starts from; None for an MLP that starts from noise, which draws its own.

    Raises `ConfigError` if a text is to be read without a tokenizer.
    """
    if config.init == "text":
        if tokenizer is None:
            raise ConfigError("init='text' needs the model's tokenizer: add(name, config, tokenizer=tokenizer).")
        return text_prefix(model, tokenizer, config.init_text, config.num_virtual_tokens, sites)
    if config.init == "zero":
        return zero_prefix(sites, config.num_virtual_tokens)
    return None if config.reparameterization == "mlp" else random_prefix(sites, config.num_virtual_tokens)


def random_prefix(sites: Sequence[Site], num_virtual_tokens: int) -> Prefix:
    """Draw every key and value from a standard normal distribution with torch's generator."""
    return _filled(sites, num_virtual_tokens, torch.randn)


def zero_prefix(sites: Sequence[Site], num_virtual_tokens: int) -> Prefix:
    """Set every key and value to zero: attention mass without content."""
    return _filled(sites, num_virtual_tokens, torch.zeros)


def text_prefix(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str | None,
    num_virtual_tokens: int,
    sites: Sequence[Site],
) -> Prefix:
    """Capture the first `num_virtual_tokens` tokens of a text, as `text_ids` gives them.

    A prefix made in this way equals having these tokens in context. Raises `ConfigError` for a text without tokens.
    """
    ids = text_ids(tokenizer, text, num_virtual_tokens)
    return token_prefix(model, torch.tensor([ids], device=device_of(model)), sites)


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str | None, num_virtual_tokens: int) -> list[int]:
    """Return the first tokens of a text, by default of an instruction, repeated as often as it takes to fill them.

    The tokenizer's beginning of sequence comes first, where the tokenizer writes one. Raises `ConfigError` for a text
    without tokens.
    """
    text = DEFAULT_TEXT if text is None else text
    body = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not body:
        raise ConfigError(f"init_text is {text!r}, which has no tokens to start a prefix from.")
    bos = tokenizer.bos_token_id
    opening = [bos] if bos is not None and tokenizer(text)["input_ids"][0] == bos else []
    ids: list[int] = (opening + body * -(-num_virtual_tokens // len(body)))[:num_virtual_tokens]
    return ids


def token_prefix(model: PreTrainedModel, input_ids: Int[torch.Tensor, "1 token"], sites: Sequence[Site]) -> Prefix:
    """Capture the keys and values of tokens, which an encoder-decoder reads on both its sides."""
    inputs = {"input_ids": input_ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = input_ids
    try:
        observed = observe_text(model, inputs)
    except UnsupportedModelError:
        raise
    except Exception as error:  # whatever a model raises that misses an image or a sound
        raise UnsupportedModelError(
            f"{type(model).__name__} does not read a text alone ({type(error).__name__}: {error}); {_OTHERWISE}"
        ) from error
    calls = {call.path: call for call in observed}
    if len(calls) < len(observed):
        raise UnsupportedModelError(
            f"{type(model).__name__} runs an attention module more than once in a forward, so no prefix equals a text; "
            f"{_OTHERWISE}"
        )
    num_tokens = input_ids.shape[1]
    for site in sites:
        if site.path not in calls or calls[site.path].key.shape[2] != num_tokens:
            raise UnsupportedModelError(
                f"'{site.path}' of {type(model).__name__} does not attend to the {num_tokens} tokens of a text, and "
                f"nothing else; {_OTHERWISE}"
            )
    return Prefix(
        sites=tuple(sites),
        keys={site.path: calls[site.path].key[0].float().cpu() for site in sites},
        values={site.path: calls[site.path].value[0].float().cpu() for site in sites},
    )


def _filled(sites: Sequence[Site], tokens: int, fill: Callable[..., torch.Tensor]) -> Prefix:
    return Prefix(
        sites=tuple(sites),
        keys={site.path: fill(site.num_key_value_heads, tokens, site.key_dim, dtype=torch.float32) for site in sites},
        values={
            site.path: fill(site.num_key_value_heads, tokens, site.value_dim, dtype=torch.float32) for site in sites
        },
    )
