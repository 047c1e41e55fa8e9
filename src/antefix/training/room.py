"""`Room`: whether prompts and answers fit behind a prefix into the positions of a base model."""

from __future__ import annotations

from antefix.bank import PrefixBank
from antefix.errors import ContextLengthError
from antefix.sites import Kind


class Room:
    """The positions that a bank's base model has, and how many a prefix takes; none if no prefix is named."""

    def __init__(self, bank: PrefixBank, name: str | None = None) -> None:
        self.limits = bank.limits
        self.is_encoder_decoder = bool(bank.model.config.is_encoder_decoder)
        self.kind: Kind = "decoder" if any(site.kind == "decoder" for site in bank.sites) else "encoder"
        self.num_virtual_tokens: dict[Kind, int] = {}
        if name is not None:
            prefix = bank.prefix(name)
            self.num_virtual_tokens = dict.fromkeys((site.kind for site in prefix.sites), prefix.num_virtual_tokens)

    @property
    def max_tokens(self) -> int | None:
        """How many tokens fit behind the prefix into every stack that has a limit; None without a limit."""
        room = [limit - self.num_virtual_tokens.get(kind, 0) for kind, limit in self.limits.items()]
        return min(room, default=None)

    def check(self, prompt: int, answer: int, shorten: str) -> None:
        """Raise `ContextLengthError`, which says what to `shorten`, if so many tokens do not fit."""
        needed: dict[Kind, dict[str, int]] = {self.kind: {"prompt": prompt, "answer": answer}}
        if self.is_encoder_decoder:  # it reads the prompt in one stack and writes the answer in the other
            needed = {"encoder": {"prompt": prompt}, "decoder": {"answer": answer}}
        for kind, parts in needed.items():
            limit, virtual = self.limits.get(kind), self.num_virtual_tokens.get(kind, 0)
            if limit is not None and virtual + sum(parts.values()) > limit:
                counts = " and ".join(f"the {name} ({tokens})" for name, tokens in parts.items())
                raise ContextLengthError(
                    f"the prefix ({virtual} tokens), {counts} need more than the {limit} positions of the {kind}; "
                    f"shorten {shorten}."
                )
