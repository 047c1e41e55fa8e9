"""What the base of the study reads before any method touches it, as endless batches of one kind of text each.

References of E2E without their meaning representations and articles of WikiText-2 give it words. Registers of invented
people with questions, records told in other forms, and references to be told from some of their words in any order
teach it to look at its context: without that neither a document nor a meaning representation is of use to it.
"""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

from scripts.make_embedded_model import draw_document
from scripts.pretraining import padded, train_bpe
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from benchmarks.quality.registers import Register

SHARED = Path(os.environ.get("ANTEFIX_SHARED", Path(__file__).parents[3] / "shared"))
POSITIONS = 512
BATCH_TOKENS = 1024
"""About how many tokens a batch has; what must be found takes many steps rather than many tokens."""
VOCAB_SIZE = 4096

Row = tuple[list[int], list[int]]
"""Token ids that carry no loss, and those behind them that do."""


@cache
def _wikitext() -> str:
    return "".join(
        gzip.decompress((SHARED / "data" / "wikitext2" / f"{part}.txt.gz").read_bytes()).decode()
        for part in ("valid", "test")
    )


def general_text() -> str:
    """Return English that the base has not read: the last tenth of WikiText-2."""
    return _wikitext()[len(_wikitext()) * 9 // 10 :]


@cache
def _references() -> list[str]:
    lines = gzip.decompress((SHARED / "data" / "e2e_nlg" / "train.jsonl.gz").read_bytes()).decode().splitlines()
    return [json.loads(line)["ref"] for line in lines]


def train_tokenizer(rng: random.Random) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, whose digits stand alone, on all kinds of text."""
    registers = [Register.draw(rng, 8).text for _ in range(1000)]
    documents = ["".join(draw_document(rng)) for _ in range(2000)]
    texts = [_wikitext(), *_references()[:20_000], *registers, *documents]
    return train_bpe(texts, VOCAB_SIZE, model_max_length=POSITIONS)


class Corpus:
    """Batches of ids and labels `(rows, longest)` of each kind of text, padded on the right."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> None:
        self._tokenizer = tokenizer
        self._rng = rng
        articles = _wikitext()[: -len(general_text())].split("\n = ")
        self._draw: dict[str, Callable[[float], Row]] = {
            "registers": self._register,
            "forms": self._form,
            "words": self._words,
            "e2e": partial(_next, self._packed(_references(), 128)),
            "wikitext": partial(_next, self._packed(articles, POSITIONS)),
        }

    def batch(self, kind: str, progress: float) -> tuple[Tensor, Tensor]:
        """Return a batch; `progress`, from 0 to 1, lets the registers grow."""
        rows: list[Row] = []
        while not rows or sum(len(prompt) + len(told) for prompt, told in rows) < BATCH_TOKENS * 0.9:
            rows.append(self._draw[kind](progress))
        return padded(rows, self._tokenizer.pad_token_id)

    def _register(self, progress: float) -> Row:
        register = Register.draw(self._rng, self._rng.randint(2, 4 + round(14 * min(1.0, progress / 0.7))))
        prompt = self._ids(f"<s>{register.text}")
        told = self._ids(register.sections(self._rng, len(register.people)))
        return prompt, told[: POSITIONS - len(prompt)]

    def _form(self, progress: float) -> Row:
        prompt, told = draw_document(self._rng)
        return self._ids(prompt), self._ids(told)

    def _words(self, progress: float) -> Row:
        reference = self._rng.choice(_references())
        words = [word.strip(".,") for word in reference.split() if self._rng.random() < 0.6]
        self._rng.shuffle(words)
        return self._ids(f"<s>{', '.join(words)}\n"), self._ids(f"{reference}</s>")

    def _packed(self, texts: list[str], length: int) -> Iterator[Row]:
        encoded = [self._ids(f"<s>{text}</s>") for text in texts]
        rest: list[int] = []
        while True:
            self._rng.shuffle(encoded)
            for ids in encoded:
                rest += ids
                while len(rest) >= length:
                    row, rest = rest[:length], rest[length:]
                    yield row[:1], row[1:]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def _next(rows: Iterator[Row], progress: float) -> Row:
    return next(rows)
