"""`Teacher`: the base model with a text before its eyes, which it reads once for all that it then writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedTokenizerBase

from antefix.bank import PrefixBank
from antefix.initialize import token_prefix
from antefix.training.distillation.lessons import Draft, Lesson
from antefix.training.distillation.targets import Targets
from antefix.training.generation import generate_ids
from antefix.training.tokens import pad_rows, padding_id

_NAME = "what the teacher reads"


class Teacher:
    """Writes after a text, and says how likely each token is there.

    The text becomes a prefix, so its keys and values are computed and kept once, however many rows follow it. In
    `write`, rows end at a token that holds a line break where `stops_at_line_break`, else at the end-of-text token.
    """

    def __init__(
        self, bank: PrefixBank, tokenizer: PreTrainedTokenizerBase, num_logits: int, temperature: float, max_new: int
    ) -> None:
        self.bank = bank
        self.tokenizer = tokenizer
        self.num_logits = num_logits
        self.temperature = temperature
        self.max_new_tokens = max_new
        pieces = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
        self.line_breaks = {token for token, piece in enumerate(pieces) if "\n" in piece}

    @contextmanager
    def reading(self, ids: Sequence[int]) -> Iterator[None]:
        """Put a text of ids before everything within; without ids, nothing."""
        if not ids:
            with self.bank.use(None):
                yield
            return
        model = self.bank.model
        with self.bank.use(None):
            prefix = token_prefix(model, torch.tensor([list(ids)], device=model.device), self.bank.sites)
        self.bank.add(_NAME, prefix)
        try:
            with self.bank.use(_NAME):
                yield
        finally:
            self.bank.remove(_NAME)

    def write(self, rows: Sequence[list[int]], seed: int, stops_at_line_break: bool) -> list[list[int]]:
        """Return what is sampled after each row, up to and with the token that ends it, or the most tokens."""
        model, pad = self.bank.model, padding_id(self.tokenizer)
        stops = self._stops(stops_at_line_break)
        sampling = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        ids = pad_rows(rows, pad, on_left=True).to(model.device)
        mask = pad_rows([[1] * len(row) for row in rows], 0, on_left=True).to(model.device)
        model.eval()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made = generate_ids(
                model,
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=self.max_new_tokens,
                eos_token_id=sorted(stops) or None,
                pad_token_id=pad,
                num_beams=1,
                **(sampling if self.temperature > 0 else {"do_sample": False}),
            )
        return [_until(row, stops) for row in made[:, ids.shape[1] :].tolist()]

    def answer(self, contexts: Sequence[list[int]], seed: int, stops_at_line_break: bool) -> list[list[int]]:
        """Return what is written after each context; what they have in common is read once."""
        read = common_start(contexts)
        with self.reading(contexts[0][:read]):
            return self.write([context[read:] for context in contexts], seed, stops_at_line_break)

    @property
    def ends(self) -> set[int]:
        """The ids that end a text: the tokenizer's, and those that the model's configuration names."""
        configured = getattr(self.bank.model.generation_config, "eos_token_id", None)
        listed = configured if isinstance(configured, list) else [configured]
        return {int(token) for token in [*listed, self.tokenizer.eos_token_id] if token is not None}

    def ended(self, written: Sequence[int], stops_at_line_break: bool) -> bool:
        """Tell whether a text came to its end, rather than to the most tokens."""
        return bool(written) and written[-1] in self._stops(stops_at_line_break)

    def _stops(self, at_line_break: bool) -> set[int]:
        return self.ends | (self.line_breaks if at_line_break else set())

    def lessons(self, drafts: Sequence[Draft]) -> list[Lesson]:
        """Return drafts with their targets; what their contexts have in common is read once."""
        read = common_start([draft.context for draft in drafts])
        with self.reading(drafts[0].context[:read]):
            targets = self.targets(drafts, read)
        return [Lesson.of(draft, found) for draft, found in zip(drafts, targets, strict=True)]

    def targets(self, drafts: Sequence[Draft], num_read: int) -> list[Targets]:
        """Return the targets of what is written in each draft, the first `num_read` ids of whose context are read."""
        model = self.bank.model
        befores = [draft.context[num_read:] for draft in drafts]
        rows = [before + draft.continuation for before, draft in zip(befores, drafts, strict=True)]
        flags = [[False] * len(before) + draft.is_written for before, draft in zip(befores, drafts, strict=True)]
        ids, written = pad_rows(rows, padding_id(self.tokenizer)), pad_rows(flags, 0).bool()
        mask = pad_rows([[1] * len(row) for row in rows], 0)
        model.eval()
        with torch.no_grad():
            logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False).logits
        predicting = written[:, 1:].to(model.device)
        found = Targets.of(logits[:, :-1][predicting], ids[:, 1:].to(model.device)[predicting], self.num_logits)
        return found.split(written.sum(1).tolist())


def common_start(rows: Sequence[Sequence[int]]) -> int:
    """Return how many first ids all rows have in common, one less than the shortest has at most."""
    shortest = min(map(len, rows)) - 1
    alike = (len({row[place] for row in rows}) == 1 for place in range(shortest))
    return next((place for place, same in enumerate(alike) if not same), max(shortest, 0))


def _until(row: list[int], stops: set[int]) -> list[int]:
    end = next((place for place, token in enumerate(row) if token in stops), len(row) - 1)
    return row[: end + 1]
