"""How much of a document a base can read at once, with a lesson after it."""

from __future__ import annotations

from antefix.bank import PrefixBank
from antefix.errors import ConfigError, ContextLengthError
from antefix.training.distillation.settings import Distillation
from antefix.windows import attention_window

PARTS, SLACK = 2, 96
"""A lesson has two parts, question and answer, and between them some words, or a longer chat template."""
SHORTEST, LONGEST = 64, 4096
"""The fewest and the most tokens of a chunk that is to be half of the document."""


def num_readable(bank: PrefixBank) -> int | None:
    """Return how many tokens a base reads at once within its positions and attention window; None is no limit."""
    config = bank.model.config.get_text_config()
    limits = (bank.limits.get("decoder"), attention_window(config))
    return min((limit for limit in limits if limit is not None), default=None)


def longest_lesson(settings: Distillation, longest_form: int) -> int:
    """Return how many tokens a lesson may have, of which `longest_form` are neither question nor answer."""
    return PARTS * settings.max_new_tokens + max(SLACK, longest_form)


def room_to_read(readable: int | None, lesson: int, num_virtual_tokens: int) -> int | None:
    """Return how many of the `readable` tokens are left for a chunk before a lesson; None is no limit.

    Raises `ContextLengthError` if prefix and lesson do not fit.
    """
    if readable is None:
        return None
    if readable - lesson < max(num_virtual_tokens, 1):
        raise ContextLengthError(
            f"the prefix ({num_virtual_tokens} tokens) and a lesson (up to {lesson}) need more than the {readable} "
            "positions of this model; set fewer num_virtual_tokens or max_new_tokens."
        )
    return readable - lesson


def chunk_length(settings: Distillation, num_tokens: int, room: int | None, lesson: int) -> int:
    """Return how many tokens of a document are read at once, by default half of them.

    A base that always reads the same text asks the same questions; with chunks that begin elsewhere each time, it asks
    about more. Raises `ConfigError` for a chunk that leaves no room for a lesson after it.
    """
    if settings.chunk_length is None:
        usual = min(max(-(-num_tokens // 2), SHORTEST), LONGEST)
        return usual if room is None else min(usual, room)
    if room is not None and settings.chunk_length > room:
        raise ConfigError(
            f"chunk_length is {settings.chunk_length}; with a lesson of up to {lesson} tokens "
            f"behind it, the positions of this model leave room for {room}."
        )
    return settings.chunk_length
