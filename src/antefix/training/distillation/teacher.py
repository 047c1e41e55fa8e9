"""`Teacher`: the base model with a text in context, which it reads once for everything that it then writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any

import torch

from antefix.bank import PrefixBank
from antefix.errors import UnsupportedModelError
from antefix.initialize import token_prefix
from antefix.training.distillation.lessons import Draft, Lesson
from antefix.training.distillation.targets import Targets
from antefix.training.generation import before_end, ends_of, generate_ids
from antefix.training.tokens import TextPreprocessor, pad_inputs, pad_rows, padding_id

_NAME = "what the teacher reads"
MAX_TRIED = 32
"""How many tokens it takes to see whether a base reads a text that it has as a prefix."""
_LARGEST_GAP, _NO_GAP = 0.1, 0.01
"""How far log-probabilities after a text as a prefix may be from those after it in context: this share of what leaving
the text out changes, or this many nats."""


class Teacher:
    """Writes after a text, and says how likely each token is there.

    The text becomes a prefix, so its keys and values are computed and kept once, however many rows follow it. What is
    written ends at a token that ends an answer, or, if `stops_at_line_break`, at one with a line break.
    """

    def __init__(
        self, bank: PrefixBank, preprocessor: TextPreprocessor, num_logits: int, temperature: float, max_new: int
    ) -> None:
        self.bank = bank
        self.tokenizer = preprocessor.tokenizer
        self.ends = ends_of(bank.model) | preprocessor.ends
        self.num_logits = num_logits
        self.temperature = temperature
        self.max_new_tokens = max_new
        pieces = self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))])
        self.line_breaks = {token for token, piece in enumerate(pieces) if "\n" in piece}

    @contextmanager
    def reading(self, ids: Sequence[int]) -> Iterator[None]:
        """Put a text, given as token ids, before everything within; without ids, nothing."""
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

    def check_reads(self, text: Sequence[int], readable: int | None) -> None:
        """Raise `UnsupportedModelError` for a base that does not read a prefix as it reads its text in context.

        Layers that carry what they read in a state, in place of keys and values, know nothing of the prefix. A short
        text is repeated, but only as far as the base reads it at once.
        """
        text = list(islice(cycle(text), min(MAX_TRIED, readable or MAX_TRIED)))
        half = len(text) // 2
        drafts, read = [Draft(text[:half], [], text[half:], [True] * len(text[half:]))], max(half - 1, 0)
        with self.reading([]):
            in_context, without = (self.targets(drafts, num_read)[0].own for num_read in (0, read))
        with self.reading(text[:read]):
            as_prefix = self.targets(drafts, read)[0].own
        gap, widest = ((found - in_context).abs().max().item() for found in (as_prefix, without))
        if gap > max(_LARGEST_GAP * widest, _NO_GAP):
            raise UnsupportedModelError(
                f"{type(self.bank.model).__name__} does not read a text that stands before it as a prefix, as its "
                "layers carry text in a state that is no key and no value; distill takes a base whose every layer "
                "attends."
            )

    def write(self, rows: Sequence[list[int]], seed: int, stops_at_line_break: bool) -> list[list[int]]:
        """Return what is sampled after each row, up to and including a token that ends it, or `max_new_tokens`."""
        model, pad = self.bank.model, padding_id(self.tokenizer)
        stops = self._stops(stops_at_line_break)
        inputs: dict[str, Any] = pad_inputs(rows, pad, on_left=True)
        model.eval()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made = generate_ids(
                model,
                stops,
                self.temperature,
                **{name: tensor.to(model.device) for name, tensor in inputs.items()},
                max_new_tokens=self.max_new_tokens,
                pad_token_id=pad,
            )
        return [row[: len(before_end(row, stops)) + 1] for row in made[:, inputs["input_ids"].shape[1] :].tolist()]

    def answer(self, contexts: Sequence[list[int]], seed: int, stops_at_line_break: bool) -> list[list[int]]:
        """Return what is written after each context; the beginning that all share is read once."""
        read = common_start(contexts)
        with self.reading(contexts[0][:read]):
            return self.write([context[read:] for context in contexts], seed, stops_at_line_break)

    def ended(self, written: Sequence[int], stops_at_line_break: bool) -> bool:
        """Return whether a text came to its end before the maximum number of tokens."""
        return bool(written) and written[-1] in self._stops(stops_at_line_break)

    def _stops(self, at_line_break: bool) -> set[int]:
        return self.ends | (self.line_breaks if at_line_break else set())

    def lessons(self, drafts: Sequence[Draft]) -> list[Lesson]:
        """Return drafts with their targets; the beginning that all contexts share is read once."""
        read = common_start([draft.context for draft in drafts])
        with self.reading(drafts[0].context[:read]):
            targets = self.targets(drafts, read)
        return [Lesson.of(draft, found) for draft, found in zip(drafts, targets, strict=True)]

    def targets(self, drafts: Sequence[Draft], num_read: int) -> list[Targets]:
        """Return the targets of what is written in each draft, if the first `num_read` ids of its context are read."""
        model = self.bank.model
        befores = [draft.context[num_read:] for draft in drafts]
        rows = [before + draft.continuation for before, draft in zip(befores, drafts, strict=True)]
        flags = [[False] * len(before) + draft.is_written for before, draft in zip(befores, drafts, strict=True)]
        written = pad_rows(flags, 0).bool()
        inputs = {name: t.to(model.device) for name, t in pad_inputs(rows, padding_id(self.tokenizer)).items()}
        model.eval()
        with torch.no_grad():
            logits = model(**inputs, use_cache=False).logits
        predicting = written[:, 1:].to(model.device)
        found = Targets.of(logits[:, :-1][predicting], inputs["input_ids"][:, 1:][predicting], self.num_logits)
        return found.split(written.sum(1).tolist())


def common_start(rows: Sequence[Sequence[int]]) -> int:
    """Return how many ids all rows begin with alike; at most one less than the shortest row has."""
    shortest = min(map(len, rows)) - 1
    alike = (len({row[place] for row in rows}) == 1 for place in range(shortest))
    return next((place for place, same in enumerate(alike) if not same), max(shortest, 0))
