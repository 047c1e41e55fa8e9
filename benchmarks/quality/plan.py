"""Which runs the study has: learning rates are chosen on validation data, and figures are of test data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

from benchmarks.quality.ledger import Ledger
from benchmarks.quality.methods import Method
from benchmarks.quality.runs import Run

TASKS = ("phonemes", "family", "e2e")
SEEDS = (0, 1, 2)
MORE_SEEDS = (*SEEDS, 3, 4, 5)
"""For what lies closer together than three seeds can tell."""
NUM_EXAMPLES = (50, 100, 200, 500)
LENGTH = {"phonemes": 4, "family": 20, "e2e": 20}
"""How many virtual tokens a prefix has where nothing else is said; the model of phonemes has only 64 positions."""
LENGTHS = {"phonemes": (1, 2, 8, 16), "family": (5, 50, 200), "e2e": (5, 50, 200)}
ELSEWHERE: dict[str, tuple[str, dict[str, Any]]] = {
    "phonemes": ("cross-attention only", {"num_virtual_tokens": 12, "sites": ("cross",)}),
    "family": ("upper half only", {"num_virtual_tokens": 40, "layers": (3, 4, 5)}),
    "e2e": ("upper half only", {"num_virtual_tokens": 40, "layers": (3, 4, 5)}),
}
"""Prefixes with as many parameters at some sites only."""
PEFT_LENGTH = {"phonemes": 12, "family": 20, "e2e": 20}
"""The length at which PEFT's prefix has as many parameters: of an encoder-decoder it takes the decoder's own alone."""
EQUAL_RANK = {"phonemes": 2, "family": 6, "e2e": 6}
"""The rank at which LoRA on queries and values has as many parameters, or just more."""

FLAT = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
MLP = (3e-4, 1e-3, 3e-3, 1e-2)
LORA = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
LORA_EVERYWHERE = (1e-4, 3e-4, *LORA)
SCALED = (3e-2, 1e-1, 3e-1)
FULL = (1e-4, 3e-4, 1e-3, 3e-3)


@dataclass(frozen=True)
class Contender:
    """A method with its settings, under the name that it is shown by, and the learning rates it is tried at.

    It trains so many `times` as long as a task usually does.
    """

    name: str
    kind: str
    rates: tuple[float, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    averaged: float = 0.0
    times: int = 1

    def at(self, rate: float) -> Method:
        """Return the method at a learning rate."""
        return Method(self.kind, rate, self.settings, self.averaged)

    def tuning(self, task: str) -> list[Run]:
        """Return the runs that choose the learning rate."""
        return [Run(task, self.at(rate), split="validation", times=self.times) for rate in self.rates]

    def best(self, task: str, ledger: Ledger) -> tuple[float, Method]:
        """Return the least loss on validation data and the method at that learning rate; those runs come before."""
        found = ((_loss(ledger.figures(run)), run.method) for run in self.tuning(task))
        return min(found, key=itemgetter(0))

    def finals(
        self, task: str, ledger: Ledger, num_examples: int | None = None, seeds: Sequence[int] = SEEDS
    ) -> list[Run]:
        """Return the runs of all seeds at the best learning rate, measured on test data."""
        seeds = seeds if self.rates != (0.0,) else seeds[:1]
        return [Run(task, self.best(task, ledger)[1], seed, num_examples, times=self.times) for seed in seeds]


FULL_TUNING = Contender("full fine-tuning", "full", FULL)
HEAD_ALONE = Contender("head alone", "head", (1e-3, 3e-3, 1e-2, 3e-2, 1e-1))
BASE = Contender("bare base", "base", (0.0,))


def prefix(task: str, name: str = "prefix", rates: tuple[float, ...] = FLAT, **settings: Any) -> Contender:
    """Return the default prefix, or one that differs from it in some settings."""
    return Contender(name, "antefix", rates, {"num_virtual_tokens": LENGTH[task], "num_frozen_tokens": 0, **settings})


def near(task: str, ledger: Ledger) -> tuple[float, ...]:
    """Return the default prefix's learning rate and those on either side of it."""
    number = FLAT.index(prefix(task).best(task, ledger)[1].learning_rate)
    return FLAT[max(number - 1, 0) : number + 2]


def peft_prefix(task: str) -> Contender:
    """Return PEFT's prefix with as many parameters."""
    return Contender("PEFT prefix", "peft", FLAT, {"num_virtual_tokens": PEFT_LENGTH[task]})


def lora(task: str) -> Contender:
    """Return LoRA with about as many parameters as the prefix."""
    return Contender("LoRA, equal", "lora", LORA, {"r": EQUAL_RANK[task], "target_modules": ("q_proj", "v_proj")})


def peers(task: str, ledger: Ledger) -> list[Contender]:
    """Return what the prefix is held against."""
    projected = {"num_virtual_tokens": PEFT_LENGTH[task], "prefix_projection": True, "encoder_hidden_size": 512}
    return [
        prefix(task),
        peft_prefix(task),
        Contender("PEFT prefix, MLP", "peft", MLP, projected),
        lora(task),
        Contender("LoRA, r=8 everywhere", "lora", LORA_EVERYWHERE, {"r": 8, "target_modules": "all-linear"}),
        FULL_TUNING,
        *([HEAD_ALONE] if task == "family" else []),
        BASE,
    ]


def settings(task: str, ledger: Ledger) -> list[Contender]:
    """Return prefixes that differ from the default in one setting."""
    rates = near(task, ledger)
    found = [
        prefix(task, "MLP", MLP, reparameterization="mlp"),
        prefix(task, "random", rates, init="random"),
        prefix(task, "zero", rates, init="zero"),
        prefix(task, "first token frozen", rates, num_frozen_tokens=1),
        *(prefix(task, f"length {length}", rates, num_virtual_tokens=length) for length in LENGTHS[task]),
    ]
    if task == "family":
        found.append(prefix(task, "head at the same rate", one_rate=True))
    return found


def variants(task: str, ledger: Ledger) -> list[Contender]:
    """Return what the literature offers beyond the settings that antefix has."""
    usual, rates = prefix(task).settings, near(task, ledger)
    return [
        Contender("steps scaled by RMS", "scaled", SCALED, {**usual, "by": "rms"}),
        Contender("values at a third of the rate", "scaled", rates, {**usual, "by": "values", "factor": 1 / 3}),
        Contender("values at three times the rate", "scaled", rates, {**usual, "by": "values", "factor": 3.0}),
        Contender("gated values", "scaled", rates, {**usual, "gated": True}),
        Contender("averaged weights", "antefix", rates, usual, averaged=0.95),
        Contender("MLP of three layers", "deep", MLP, usual),
        Contender("Prefix-Tuning+", "decoupled", MLP),
        prefix(task, ELSEWHERE[task][0], rates, **ELSEWHERE[task][1]),
    ]


def few_examples(task: str, ledger: Ledger) -> list[Contender]:
    """Return what is trained on few examples as well, at the learning rates for all of them."""
    return [prefix(task), peft_prefix(task), lora(task), FULL_TUNING]


def twins(task: str, ledger: Ledger) -> list[Contender]:
    """Return the prefix and PEFT's, which in a decoder are one function, from where each starts and from one start."""
    found = [prefix(task), peft_prefix(task)]
    if PEFT_LENGTH[task] == LENGTH[task]:
        settings = {**found[1].settings, "from_text": True}
        found.append(Contender("PEFT prefix, text", "peft", near(task, ledger), settings))
    return found


def longer(task: str, ledger: Ledger) -> list[Contender]:
    """Return the prefix and PEFT's on the task that reads the least of its examples, training five times as long."""
    rates = near(task, ledger)
    return [replace(one, rates=rates, times=5) for one in (prefix(task), peft_prefix(task)) if task == "e2e"]


GROUPS: dict[str, Callable[[str, Ledger], list[Contender]]] = {
    "peers": peers,
    "settings": settings,
    "variants": variants,
    "few": few_examples,
    "twins": twins,
    "longer": longer,
}
"""What is compared, in the order in which it is run: the rates of later groups hang on the figures of the peers."""


def finals(group: str, contender: Contender, task: str, ledger: Ledger) -> list[Run]:
    """Return the runs of a contender on test data: none of a variant no better than the default on validation data."""
    if group == "few":
        return [run for number in NUM_EXAMPLES for run in contender.finals(task, ledger, number)]
    if group == "twins":
        return contender.finals(task, ledger, seeds=MORE_SEEDS)
    if group == "variants" and contender.best(task, ledger)[0] >= prefix(task).best(task, ledger)[0]:
        return []
    return contender.finals(task, ledger)


def _loss(figures: dict[str, Any]) -> float:
    return float(figures["scores"]["loss"])
