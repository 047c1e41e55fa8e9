"""How much of a document a base can read at once, with a lesson behind it."""

from __future__ import annotations

from antefix.bank import PrefixBank
from antefix.errors import ConfigError, ContextLengthError
from antefix.positions import sliding_window
from antefix.training.distillation.settings import Distillation

PARTS, SLACK = 2, 96
"""A lesson has a question and an answer, and beside them the words of its form or of the chat template."""


def chunk_length(bank: PrefixBank, settings: Distillation, num_virtual_tokens: int) -> int | None:
    """Return how many tokens of the document go before a lesson, None for all; no attention window may cut them off.

    Raises `ConfigError` for a chunk that is longer than that, `ContextLengthError` where prefix and lesson do not fit.
    """
    config = bank.model.config.get_text_config()
    limits = [bank.limits.get("decoder"), getattr(config, "max_position_embeddings", None), sliding_window(config)]
    limit = min((known for known in limits if known is not None), default=None)
    if limit is None:
        return settings.chunk_length
    lesson = PARTS * settings.max_new_tokens + SLACK
    room = limit - lesson
    if room < max(num_virtual_tokens, 1):
        raise ContextLengthError(
            f"the prefix ({num_virtual_tokens} tokens) and a lesson (up to {lesson}) need more than the {limit} "
            "positions of this model; set fewer num_virtual_tokens or max_new_tokens."
        )
    if settings.chunk_length is not None and settings.chunk_length > room:
        raise ConfigError(
            f"chunk_length is {settings.chunk_length}; with a lesson of up to {lesson} tokens behind it, this model's "
            f"{limit} positions leave room for {room}."
        )
    return settings.chunk_length or room
