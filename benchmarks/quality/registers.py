"""Registers of invented people, and what can be asked about them: documents whose facts no model knows beforehand."""

from __future__ import annotations

import random
from dataclasses import dataclass

from antefix.embedded.records import Record, draw_record

STATEMENTS = {
    "town": "{name} lives in {town}.",
    "job": "{name} works as a {job}.",
    "age": "{name} is {age} years old.",
    "likes": "{name} likes {likes}.",
}
QUESTIONS = {
    "town": ("Where does {name} live?", "Which town does {name} live in?"),
    "job": ("What does {name} do?", "What is the work of {name}?"),
    "age": ("How old is {name}?", "What is the age of {name}?"),
    "likes": ("What does {name} like?", "What is {name} fond of?"),
}
SHORT = {"town": "In {town}.", "job": "{name} is a {job}.", "age": "{name} is {age}.", "likes": "{name} loves {likes}."}
"""Another way to answer; which of the two is written is open, so that answers have an entropy of their own."""

Question = tuple[str, str]
"""A question and an answer to it."""


@dataclass(frozen=True)
class Register:
    """A document of one line a person, and what else can be written about it."""

    people: tuple[dict[str, str], ...]

    @classmethod
    def draw(cls, rng: random.Random, num_people: int) -> Register:
        """Invent people with names of their own."""
        people: dict[str, dict[str, str]] = {}
        while len(people) < num_people:
            record = draw_record(rng)
            if record.kind == "person":
                name = _given_name(record)
                people.setdefault(name, {**record.fields, "name": name})
        return cls(tuple(people.values()))

    def text(self, rng: random.Random) -> str:
        """Return the document; each person's facts stand in an order of their own."""
        lines = []
        for person in self.people:
            facts = rng.sample(sorted(STATEMENTS), len(STATEMENTS))
            lines.append("- " + " ".join(STATEMENTS[fact].format(**person) for fact in facts))
        return "Register\n" + "\n".join(lines) + "\n\n"

    def questions(self, rng: random.Random) -> list[Question]:
        """Return one question about each fact, in the order of the document."""
        return [ask(person, fact, rng) for person in self.people for fact in STATEMENTS]

    def sections(self, rng: random.Random, number: int) -> str:
        """Return questions with their answers, notes and summaries in random order."""
        return "".join(self._section(rng) for _ in range(number))

    def _section(self, rng: random.Random) -> str:
        person, kind = rng.choice(self.people), rng.random()
        if kind < 0.75:
            question, answer = ask(person, rng.choice(sorted(STATEMENTS)), rng)
            return f"Question: {question}\nAnswer: {answer}\n\n"
        if kind < 0.9:
            return "Note: {name}, a {job} of {age} from {town} who likes {likes}.\n\n".format(**person)
        names = [one["name"] for one in self.people]
        return f"Summary: The register lists {', '.join(names[:-1])} and {names[-1]}.\n\n"


def ask(person: dict[str, str], fact: str, rng: random.Random) -> Question:
    """Return a question about a fact, and its answer, each worded in one of two ways."""
    question = rng.choice(QUESTIONS[fact])
    answer = rng.choice((STATEMENTS[fact], SHORT[fact]))
    return question.format(**person), answer.format(**person)


def _given_name(record: Record) -> str:
    return record.fields["name"].partition(" ")[0]
