"""A teacher's distributions over a text, kept compactly: the likeliest tokens, and the mass of all others.

The divergence from them takes all other tokens as one: it is never more than the full divergence, and equal to it if
every token is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from antefix.shapes import Float, Int


@dataclass(frozen=True, eq=False)
class Targets:
    """For each of some tokens: the teacher's likeliest `ids` in its place and their log-probabilities, in nats.

    `rest` is the log-probability of all other ids together, `own` that of the token itself.
    """

    ids: Int[Tensor, "token k"]
    log_probs: Float[Tensor, "token k"]
    rest: Float[Tensor, " token"]
    own: Float[Tensor, " token"]

    @classmethod
    def of(cls, logits: Float[Tensor, "token vocabulary"], tokens: Int[Tensor, " token"], number: int) -> Targets:
        """Keep the `number` likeliest of a teacher's ids, in half precision; `rest` and `own` in fp32."""
        log_probs = logits.float().log_softmax(-1)
        kept, ids = log_probs.topk(min(number, logits.shape[-1]))
        own = log_probs.gather(1, tokens[:, None]).squeeze(1)
        parts = ids.int(), kept.half(), _rest(log_probs, ids), own
        return cls(*(part.cpu() for part in parts))

    @classmethod
    def joined(cls, parts: Sequence[Targets]) -> Targets:
        """Put the targets of several texts one after another."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def split(self, lengths: Sequence[int]) -> list[Targets]:
        """Return the targets of texts with these numbers of tokens."""
        columns = (getattr(self, field.name).split(list(lengths)) for field in fields(self))
        return [Targets(*parts) for parts in zip(*columns, strict=True)]

    def divergence(self, logits: Float[Tensor, "token vocabulary"]) -> Float[Tensor, " token"]:
        """Return the Kullback-Leibler divergence of a student's logits from the teacher, in nats."""
        teacher = torch.cat([self.log_probs.float(), self.rest[:, None]], dim=1)
        teacher = teacher.log_softmax(-1)  # half precision moved the sum away from one
        log_probs = logits.float().log_softmax(-1)
        ids = self.ids.long()
        if ids.shape[1] == logits.shape[1]:
            student, teacher = log_probs.gather(1, ids), teacher[:, :-1]
        else:
            student = torch.cat([log_probs.gather(1, ids), _rest(log_probs, ids)[:, None]], dim=1)
        terms = teacher.exp() * (teacher - student)
        return torch.where(teacher.isneginf(), 0.0, terms).sum(1)


def _rest(log_probs: Tensor, ids: Tensor) -> Tensor:
    """Return the log-probability of all other ids together; one minus the sum of `ids` would round to nothing."""
    return log_probs.scatter(1, ids, -torch.inf).logsumexp(-1)
