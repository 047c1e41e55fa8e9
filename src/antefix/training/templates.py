"""Templates over the fields of a row."""

from __future__ import annotations

import datetime
import math
import re
import string
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from antefix.errors import DataError
from antefix.training.examples import Example, checked_text
from antefix.training.rows import Row


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

    def fill(self, fields: dict[str, Any], where: str) -> str:
        """Return the text with the fields of a row; `where` tells the row in an error."""
        for name in self.fields:
            if name not in fields:
                raise DataError(
                    f"the template {self.text!r} names the field '{name}', but {where} has "
                    f"{', '.join(map(repr, fields)) or 'no fields'}."
                )
            if fields[name] is None:
                raise DataError(f"the field '{name}' of {where} is null; leave such examples out.")
            if (kind := _unwritable(fields[name])) is not None:
                raise DataError(f"the field '{name}' of {where} is {kind}; a template takes text and numbers.")
        return checked_text(self.text.format(**{name: fields[name] for name in self.fields}), where)


def _unwritable(value: object) -> str | None:
    """Return what a value is that would be written as Python shows it; None for text, numbers and times."""
    if isinstance(value, float) and not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if isinstance(value, (str, int, float, Decimal, datetime.date, datetime.time, datetime.timedelta)):
        return None
    known: dict[type, str] = {list: "a list", dict: "an object", bytes: "binary"}
    return known.get(type(value), f"of the kind {type(value).__name__}")


@dataclass(frozen=True)
class Templates:
    """Templates of prompt and answer; raises `DataError` for an answer template that names no field."""

    prompt_template: Template
    answer_template: Template

    def __post_init__(self) -> None:
        if not self.answer_template.fields:
            raise DataError(
                f"the answer template {self.answer_template.text!r} names no field; write one as {{field}}."
            )

    def prompt(self, row: Row, context: str = "") -> str:
        """Return the filled prompt template behind the context."""
        where, fields = row
        return context + self.prompt_template.fill(fields, where)

    def example(self, row: Row, context: str = "") -> Example:
        """Return both templates, filled."""
        where, fields = row
        return Example(self.prompt(row, context), self.answer_template.fill(fields, where))


def unescape(template: str) -> str:
    r"""Read \n, \t and \\ in a template from a command line, where a line break is hard to type."""
    return re.sub(r"\\([nt\\])", lambda found: {"n": "\n", "t": "\t", "\\": "\\"}[found[1]], template)
