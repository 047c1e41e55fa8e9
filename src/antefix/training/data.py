"""Examples from JSON Lines or CSV, templates over their fields, and batches of token ids."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import string
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from antefix.errors import DataError

IGNORED_LABEL = -100


@dataclass(frozen=True)
class Example:
    """One example as text, ready for the model."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Template:
    """A text with `{field}` placeholders; raises `DataError` for one that is not."""

    text: str

    def __post_init__(self) -> None:
        try:
            parts = list(string.Formatter().parse(self.text))
        except ValueError as error:
            raise DataError(
                f"the template {self.text!r} is malformed ({error}); write braces as {{{{ and }}}}."
            ) from error
        for _, name, spec, conversion in parts:
            if name is not None and (not name or name.isdigit() or spec or conversion or set(name) & set(".[]")):
                raise DataError(
                    f"the template {self.text!r} may only name fields, as {{field}}; other braces are {{{{ and }}}}."
                )

    @property
    def fields(self) -> list[str]:
        """The fields the template names."""
        return [name for _, name, _, _ in string.Formatter().parse(self.text) if name is not None]

    def fill(self, row: dict[str, Any], where: str) -> str:
        """Return the text with the fields of a row; `where` tells the row in an error."""
        for name in self.fields:
            if name not in row:
                raise DataError(
                    f"the template {self.text!r} names the field '{name}', but {where} has "
                    f"{', '.join(map(repr, row)) or 'no fields'}."
                )
            if row[name] is None:
                raise DataError(f"the field '{name}' of {where} is null; leave such examples out.")
        filled = self.text.format(**{name: row[name] for name in self.fields})
        try:
            filled.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{where} holds half a surrogate pair, which is no text: {filled[:60]!r}.") from error
        return filled


def is_table(path: Path) -> bool:
    """Tell by its name whether a file holds rows with fields."""
    return path.name.removesuffix(".gz").rpartition(".")[2].lower() in ("csv", "jsonl", "json")


def unescape(template: str) -> str:
    r"""Read \n, \t and \\ in a template from a command line, where a line break is hard to type."""
    return re.sub(r"\\([nt\\])", lambda found: {"n": "\n", "t": "\t", "\\": "\\"}[found[1]], template)


def read_rows(path: str | Path, limit: int | None = None) -> list[tuple[str, dict[str, Any]]]:
    """Read JSON Lines or CSV (either may be gzipped) as `(where, fields)`, where naming file and line.

    Raises `DataError` with the number of a line that is broken, and for a file without examples.
    """
    path = Path(path)
    suffix = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"the data file '{path}' cannot be read: {reason}.") from error
    if suffix == "csv":
        rows = _csv_rows(text, path)
    elif suffix in ("jsonl", "json"):
        rows = _json_rows(text, path, limit)
    else:
        raise DataError(f"the data file '{path}' must end in .jsonl or .csv (or that and .gz).")
    if not rows:
        raise DataError(f"the data file '{path}' holds no examples.")
    return rows[:limit]


def fill_templates(rows: Sequence[tuple[str, dict[str, Any]]], prompt: Template, answer: Template) -> list[Example]:
    """Fill both templates with every row."""
    return [Example(prompt.fill(row, where), answer.fill(row, where)) for where, row in rows]


@dataclass(frozen=True)
class ExampleTokenizer:
    """Turns examples into token ids, as a causal model or an encoder-decoder wants them.

    Raises `DataError` for an example of more than `max_length` tokens, or one whose answer has none.
    """

    tokenizer: PreTrainedTokenizerBase
    answer_tokenizer: PreTrainedTokenizerBase
    is_encoder_decoder: bool
    max_length: int

    def encode(self, example: Example) -> dict[str, list[int]]:
        """Return `input_ids` and `labels`; a causal model's prompt has no labels."""
        prompt = self.prompt_ids(example.prompt)
        if self.is_encoder_decoder:
            labels = list(self.answer_tokenizer(text_target=example.answer)["input_ids"])
            ids = prompt
        else:
            answer = list(self.answer_tokenizer(example.answer, add_special_tokens=False)["input_ids"])
            if self.answer_tokenizer.eos_token_id is not None:
                answer.append(self.answer_tokenizer.eos_token_id)
            ids, labels = prompt + answer, [IGNORED_LABEL] * len(prompt) + answer
        if all(label == IGNORED_LABEL for label in labels):
            raise DataError(f"an example has an answer without tokens: {example.prompt[:60]!r}.")
        longest = max(len(ids), len(labels))
        if longest > self.max_length:
            raise DataError(
                f"an example has {longest} tokens, more than max_length={self.max_length}: {example.prompt[:60]!r}."
            )
        return {"input_ids": ids, "labels": labels}

    def can_write(self, row: dict[str, list[int]]) -> bool:
        """Return whether the tokenizer knows every piece of an encoded example's answer."""
        unknown, end = self.answer_tokenizer.unk_token_id, self.answer_tokenizer.eos_token_id
        return unknown is None or unknown == end or unknown not in row["labels"]

    def prompt_ids(self, prompt: str) -> list[int]:
        """Return the ids of a prompt, with the tokenizer's opening token; a causal model's goes on from there."""
        ids = list(self.tokenizer(prompt)["input_ids"])
        if not self.is_encoder_decoder and ids and ids[-1] == self.tokenizer.eos_token_id:
            ids.pop()
        return ids


@dataclass(frozen=True)
class Collator:
    """Pads encoded examples on the right into tensors `(batch, token)`."""

    pad_token_id: int

    def __call__(self, batch: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask` and `labels`."""
        return {
            "input_ids": pad_rows([row["input_ids"] for row in batch], self.pad_token_id),
            "attention_mask": pad_rows([[1] * len(row["input_ids"]) for row in batch], 0),
            "labels": pad_rows([row["labels"] for row in batch], IGNORED_LABEL),
        }


def pad_rows(rows: Sequence[list[int]], value: int, on_left: bool = False) -> Tensor:
    """Return rows of ids as one tensor `(row, token)`, shorter ones filled up on the right or on the left."""
    longest = max(map(len, rows))
    fill = [[value] * (longest - len(row)) for row in rows]
    return torch.tensor([gap + row if on_left else row + gap for row, gap in zip(rows, fill, strict=True)])


def _json_rows(text: str, path: Path, limit: int | None) -> list[tuple[str, dict[str, Any]]]:
    rows: list[tuple[str, dict[str, Any]]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if limit is not None and len(rows) == limit:
            break
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"line {number} of '{path}' is not valid JSON: {error}.") from error
        if not isinstance(row, dict):
            raise DataError(f"line {number} of '{path}' must be an object with fields; it is {line.strip()[:40]!r}.")
        rows.append((f"line {number} of '{path}'", row))
    return rows


def _csv_rows(text: str, path: Path) -> list[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[str, dict[str, Any]]] = []
    try:
        names = reader.fieldnames or ()
        if len(set(names)) < len(names):
            raise DataError(f"the first line of '{path}' names a column twice.")
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"line {reader.line_num} of '{path}' does not have the {len(names)} columns "
                    "that the first line names."
                )
            rows.append((f"line {reader.line_num} of '{path}'", row))
    except csv.Error as error:
        raise DataError(f"'{path}' is not valid CSV after line {reader.line_num}: {error}.") from error
    return rows
