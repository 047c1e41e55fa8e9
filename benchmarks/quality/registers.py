"""Registers of invented people, and what can be asked about them: documents whose facts no model knows beforehand.

A line is a name with its facts right behind it, because a small model learns to find what follows a name that it has
read before long before it learns to find one of several facts by the name and the kind of fact together.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from antefix.embedded.records import draw_record

LINE = "{name} {town} {job} {likes} {age}"
QUESTIONS = ("Who is {name}?", "What is known of {name}?", "Tell of {name}.")
HELD_OUT = ("What of {name}?", "Who was {name}?", "Tell me of {name}.", "What do you know of {name}?")
"""Wordings that the base has never read, and can answer with the register in its context."""

Question = tuple[str, str]
"""A question and the answer to it."""


@dataclass(frozen=True)
class Register:
    """A document of one line a person, and what else can be written about it."""

    people: tuple[dict[str, str], ...]

    @classmethod
    def draw(cls, rng: random.Random, num_people: int) -> Register:
        """Invent people with given names of their own."""
        people: dict[str, dict[str, str]] = {}
        while len(people) < num_people:
            record = draw_record(rng)
            if record.kind == "person":
                name = record.fields["name"].partition(" ")[0]
                people.setdefault(name, {**record.fields, "name": name})
        return cls(tuple(people.values()))

    @property
    def text(self) -> str:
        """The document."""
        lines = "".join(f"- {LINE.format(**person)}\n" for person in self.people)
        return f"Register: name town work liking age\n{lines}\n"

    def held_out(self) -> list[Question]:
        """Return questions about each person in words that the base has never read."""
        return [(words.format(**person), LINE.format(**person)) for person in self.people for words in HELD_OUT]

    def sections(self, rng: random.Random, number: int) -> str:
        """Return questions with their answers, notes and summaries in random order."""
        return "".join(self._section(rng) for _ in range(number))

    def _section(self, rng: random.Random) -> str:
        person, kind = rng.choice(self.people), rng.random()
        if kind < 0.75:
            question = rng.choice(QUESTIONS).format(**person)
            return f"Question: {question}\nAnswer: {LINE.format(**person)}\n\n"
        if kind < 0.95:
            return f"Note: {LINE.format(**person)}\n\n"
        names = [one["name"] for one in self.people]
        return f"Summary: The register lists {', '.join(names[:-1])} and {names[-1]}.\n\n"
