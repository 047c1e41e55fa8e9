"""Which prefix each row of a batch has: by one name for all, or by a name for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, TypeVar

from antefix.errors import ConfigError

Selection: TypeAlias = "str | Sequence[str | None] | None"
"""A prefix for all rows by name, one (or None, the bare base) for each row, or None for all."""
Choice = TypeVar("Choice")


def names_of(selection: Selection) -> Sequence[str | None]:
    """Return the names of a selection as a list, None among them where it has the bare base.

    Raises `ConfigError` for what is no selection.
    """
    if selection is None or isinstance(selection, str):
        return [selection]
    is_list = isinstance(selection, (list, tuple)) and len(selection) > 0
    if not is_list or not all(name is None or isinstance(name, str) for name in selection):
        raise ConfigError(
            f"{selection!r} selects no prefix; give a name, None, or a list with one of them for each row."
        )
    return selection


def rows_of(names: Sequence[Choice], batch: int) -> list[Choice]:
    """Repeat each row's choice as often as `generate` repeats the row, for beams or several answers.

    Raises `ConfigError` if the rows are no multiple of the names.
    """
    times, rest = divmod(batch, len(names))
    if rest or not times:
        raise ConfigError(
            f"prefixes are chosen for {len(names)} rows, but the batch has {batch}; name one for each row."
        )
    return [name for name in names for _ in range(times)]
