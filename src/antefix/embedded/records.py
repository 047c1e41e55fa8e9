"""Small records and the forms in which they can be told: the whole world of the embedded model.

A record is a handful of fields about an invented person, place or book. Each form tells the same fields in
another way, so that a form is a skill, and turning one form into another is a task a prefix can learn.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

FORMS = ("record", "json", "plain", "headline", "letter", "voice", "quiz", "verse", "notice")
"""The names of the forms; the first two hold the bare fields, the others are prose."""

_PROSE = {
    "person": {
        "plain": "{name} is a {job} of {age} who lives in {town} and likes {likes}.",
        "headline": "{town} {job} {name}, {age}, says {likes} changed everything",
        "letter": "Dear {name}, we hear that {town} has a {job} who likes {likes}. "
        "At {age} you are most welcome here. Yours, the club",
        "voice": "Hello! My name is {name}. I am {age}, I work as a {job} in {town}, and I love {likes}.",
        "quiz": "Which {job} in {town} is {age} and likes {likes}? The answer is {name}.",
        "verse": "In {town} there lives a {job},\nat {age} still young today;\nthe evenings are for {likes}\nwith {name}, they say.",
        "notice": "WANTED: {name}, {age}, a {job} for the town of {town}. Love of {likes} is no bar.",
    },
    "place": {
        "plain": "{name} is a {price} place in {town} that serves {food} by the {near}.",
        "headline": "Crowds in {town} as {name} sells {price} {food} near the {near}",
        "letter": "Dear {name}, thank you for the {food}. It was {price}, and the {near} of {town} was lovely. Yours, a guest",
        "voice": "Welcome! We are {name}. You find us in {town} by the {near}, our {food} is fresh, and our prices are {price}.",
        "quiz": "Where in {town} do they serve {price} {food} by the {near}? The answer is {name}.",
        "verse": "Beside the {near} of {town}\nthey cook their {food} all day;\nthe prices there are {price}\nat {name}, they say.",
        "notice": "OPEN NOW: {name}, {town}, by the {near}. Come for {food}. Prices: {price}.",
    },
    "book": {
        "plain": "{title} is a book about {topic} by {author} that came out in {year} and has {pages} pages.",
        "headline": "{author} wins prize: {pages} pages of {topic} in {title} still sell since {year}",
        "letter": "Dear {author}, I read all {pages} pages of {title}. Nobody has written so well about {topic} since {year}. "
        "Yours, a reader",
        "voice": "Good evening! I am {author}. In {year} I wrote {title}, which takes {pages} pages to speak of {topic}.",
        "quiz": "Which book of {year} by {author} gives {pages} pages to {topic}? The answer is {title}.",
        "verse": "In {year} came a volume\nof {pages} pages grey;\nit tells the world of {topic}:\n{title} by {author}, they say.",
        "notice": "FOR SALE: {title} by {author}, {year}, {pages} pages. Must like {topic}.",
    },
}

_ONSETS = ("b", "br", "d", "dr", "f", "g", "gr", "h", "j", "k", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "w")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ou")
_CODAS = ("", "", "l", "n", "r", "nd")
_GIVEN_ENDINGS = ("lina", "mar", "rian", "bert", "della", "vin", "nora", "rick", "nelle", "san")
_FAMILY_ENDINGS = ("lson", "ndez", "rova", "mura", "kins", "ller", "nard", "vert", "lopez", "rling", "shaw", "field")
_TOWN_ENDINGS = ("ton", "ford", "ham", "by", "mouth", "stead", "wick", "dale")
_JOBS = (
    "baker", "tailor", "nurse", "painter", "driver", "farmer", "teacher", "doctor", "gardener", "plumber", "sailor",
    "miner", "dancer", "judge", "clerk", "pilot", "cook", "lawyer", "weaver", "printer", "singer", "barber", "guide",
)  # fmt: skip
_HOBBIES = (
    "chess", "rowing", "old maps", "jazz", "cycling", "roses", "kites", "poetry", "fishing", "trains", "pottery", "tennis",
    "stars", "puzzles", "hiking", "bees", "stamps", "ballet", "cricket", "ghost stories", "bread", "card games",
)  # fmt: skip
_FOODS = (
    "soup", "noodles", "fish", "curry", "pancakes", "dumplings", "cheese", "pies", "salads", "tacos", "rice", "sushi",
    "waffles", "stew", "cakes", "roast lamb", "pizza", "oysters", "bean pots", "ice cream",
)  # fmt: skip
_PRICES = ("cheap", "fair", "modest", "high", "low", "steep")
_LANDMARKS = (
    "river", "station", "market", "old mill", "harbour", "bridge", "park", "castle", "school", "tower", "lake", "museum",
    "library", "stadium", "forest", "town hall",
)  # fmt: skip
_ADJECTIVES = (
    "Golden", "Quiet", "Red", "Lost", "Last", "Silver", "Hungry", "Green", "Little", "Broken", "Blue", "Early", "Winter",
    "Wild", "Second", "Distant", "Hollow", "Merry",
)  # fmt: skip
_NOUNS = (
    "Lantern", "Goose", "Garden", "Spoon", "Bell", "Crown", "Window", "Fox", "Anchor", "Letter", "Road", "Oak", "Mirror",
    "Sparrow", "Kettle", "Island", "Clock", "Summer",
)  # fmt: skip
_TOPICS = (
    "the sea", "bread", "lost love", "war", "whales", "railways", "the moon", "money", "mountains", "ghosts", "winter",
    "spies", "music", "salt", "horses", "islands", "glass", "bridges", "family", "deserts",
)  # fmt: skip


@dataclass(frozen=True)
class Record:
    """One invented thing: its kind (`person`, `place` or `book`) and its fields in their usual order."""

    kind: str
    fields: dict[str, str]

    def tell(self, form: str, rng: random.Random | None = None) -> str:
        """Tell the record in one of `FORMS`; with `rng`, a bare record lists its fields in random order."""
        if form == "json":
            return json.dumps(self.fields)
        if form == "record":
            items = list(self.fields.items())
            if rng is not None:
                rng.shuffle(items)
            return " | ".join(f"{field}: {value}" for field, value in items)
        return _PROSE[self.kind][form].format(**self.fields)


def draw_record(rng: random.Random) -> Record:
    """Invent a record."""
    kind = rng.choice(("person", "place", "book"))
    if kind == "person":
        fields = {
            "name": _person(rng),
            "job": rng.choice(_JOBS),
            "town": _town(rng),
            "age": str(rng.randint(18, 89)),
            "likes": rng.choice(_HOBBIES),
        }
    elif kind == "place":
        fields = {
            "name": _title(rng),
            "food": rng.choice(_FOODS),
            "town": _town(rng),
            "price": rng.choice(_PRICES),
            "near": rng.choice(_LANDMARKS),
        }
    else:
        fields = {
            "title": _title(rng),
            "author": _person(rng),
            "topic": rng.choice(_TOPICS),
            "year": str(rng.randint(1801, 2025)),
            "pages": str(rng.randint(60, 990)),
        }
    return Record(kind, fields)


def prompt(source: str, header: str | None = None) -> str:
    """Return what the embedded model is given: the text to turn and, unless a prefix does that, the form as a header."""
    return f"{source}\n=>\n" if header is None else f"style: {header}\n{source}\n=>\n"


def draw_examples(form: str, count: int, seed: int) -> list[dict[str, str]]:
    """Draw `count` headerless examples, `{"source": a bare record, "target": the same in `form`}`, of a seed."""
    rng = random.Random(seed)
    records = [draw_record(rng) for _ in range(count)]
    return [{"source": record.tell("record", rng), "target": record.tell(form)} for record in records]


def _syllable(rng: random.Random) -> str:
    return (rng.choice(_ONSETS) + rng.choice(_VOWELS)).capitalize()


def _person(rng: random.Random) -> str:
    return f"{_syllable(rng)}{rng.choice(_GIVEN_ENDINGS)} {_syllable(rng)}{rng.choice(_FAMILY_ENDINGS)}"


def _town(rng: random.Random) -> str:
    return _syllable(rng) + rng.choice(_CODAS) + rng.choice(_TOWN_ENDINGS)


def _title(rng: random.Random) -> str:
    return f"The {rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS)}"
