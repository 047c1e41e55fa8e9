"""Rows of data, from files, from folders that `datasets` wrote, and from the hub."""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from antefix.errors import ConfigError, DataError, on_one_line

Row = tuple[str, dict[str, Any]]
"""Where a row comes from, as an error names it, and its fields."""

TABLES = ("csv", "jsonl", "json", "parquet")


def is_table(path: Path) -> bool:
    """Return whether a file has rows with fields, judging by its name."""
    return _suffix(path) in TABLES


def read_rows(
    source: str | Path, limit: int | None = None, config: str | None = None, split: str | None = None
) -> list[Row]:
    """Read rows, at most `limit` of them, as `stream_rows` does."""
    return list(stream_rows(source, limit, config, split))


def stream_rows(
    source: str | Path, limit: int | None = None, config: str | None = None, split: str | None = None
) -> Iterator[Row]:
    """Yield rows, at most `limit` of them, without keeping any.

    `source` is a file of JSON Lines, CSV (either may be gzipped) or Parquet, a folder that `Dataset.save_to_disk` or
    `DatasetDict.save_to_disk` wrote, or a dataset of the hub, which `config` and `split` choose from as in
    `datasets.load_dataset`. Without `split` it is the only one there is, or "train".
    Raises `DataError` with the place of what is broken, and for data without examples.
    """
    path = Path(source)
    if path.is_dir():
        rows = _rows_of_folder(path, split)
    elif path.is_file() or is_table(path) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)):
        if config is not None or split is not None:
            raise DataError(f"'{source}' is a file, which has no configurations and splits to choose from.")
        rows = _rows_of_file(path)
    else:
        rows = _rows_of_hub(str(source), config, split or "train")
    is_empty = True
    for row in islice(rows, limit):
        is_empty = False
        yield row
    if is_empty:
        raise DataError(f"the data '{source}' holds no examples.")


def _rows_of_file(path: Path) -> Iterator[Row]:
    suffix = _suffix(path)
    if suffix not in TABLES:
        raise DataError(f"the data '{path}' must be a file in .jsonl, .csv or .parquet, or the name of a dataset.")
    if suffix == "parquet":
        return _parquet_rows(path)
    lines = _lines(path, newline="" if suffix == "csv" else "\n")
    return _csv_rows(lines, path) if suffix == "csv" else _json_rows(lines, path)


def _lines(path: Path, newline: str) -> Iterator[str]:
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig", newline=newline) as file:
            yield from file
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"the data file '{path}' cannot be read: {reason}.") from error


def _suffix(path: Path) -> str:
    return path.name.removesuffix(".gz").rpartition(".")[2].lower()


def _json_rows(lines: Iterable[str], path: Path) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"line {number} of '{path}' is not valid JSON, one object per line: {error}.") from error
        if not isinstance(row, dict):
            raise DataError(f"line {number} of '{path}' must be an object with fields; it is {line.strip()[:40]!r}.")
        yield f"line {number} of '{path}'", row


def _csv_rows(lines: Iterable[str], path: Path) -> Iterator[Row]:
    reader = csv.DictReader(lines, strict=True)
    csv.field_size_limit(2**31 - 1)  # the module's own is 131,072, and a field may be a document
    try:
        # DictReader itself would take a blank line for a header without columns.
        reader.fieldnames = next((row for row in reader.reader if "".join(row).strip() or len(row) > 1), None)
        names = reader.fieldnames or ()
        if len(set(names)) < len(names):
            raise DataError(f"the header of '{path}' names a column twice.")
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"line {reader.line_num} of '{path}' does not have the {len(names)} columns that the header names."
                )
            yield f"line {reader.line_num} of '{path}'", row
    except csv.Error as error:
        raise DataError(f"'{path}' is not valid CSV after line {reader.line_num}: {error}.") from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ConfigError('reading Parquet needs pyarrow: pip install "antefix[train]".') from error
    try:
        with parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(batch_size=1000) for row in batch.to_pylist())
            yield from _numbered(rows, f"'{path}'")
    except (OSError, ArrowException, ValueError, OverflowError) as error:
        raise DataError(f"the data file '{path}' cannot be read: {on_one_line(error)}.") from error


def _rows_of_folder(path: Path, split: str | None) -> Iterator[Row]:
    datasets = _datasets()
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # a damaged folder fails in whatever way the damage happens to show
        raise DataError(
            f"the folder '{path}' is not one that datasets' save_to_disk wrote: {on_one_line(error)}"
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        wanted = split or (next(iter(loaded)) if len(loaded) == 1 else "train")
        if wanted not in loaded:
            raise DataError(f"the folder '{path}' has no split '{wanted}'; it has {', '.join(map(repr, loaded))}.")
        loaded = loaded[wanted]
    elif split is not None:
        raise DataError(f"the folder '{path}' holds one dataset, which has no split '{split}' to choose.")
    return _rows_of_dataset(loaded, f"'{path}'")


def _rows_of_hub(name: str, config: str | None, split: str) -> Iterator[Row]:
    datasets = _datasets()
    try:
        loaded = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the hub, the network, the cache and every builder have errors of their own
        raise DataError(
            f"'{name}' is neither a file nor a dataset of the hub that can be loaded: {on_one_line(error)}"
        ) from error
    return _rows_of_dataset(loaded, f"'{name}' ({split})")


def _rows_of_dataset(loaded: Iterable[dict[str, Any]], name: str) -> Iterator[Row]:
    try:
        yield from _numbered(loaded, name)
    except Exception as error:  # a column is decoded when its row is read, and fails as its decoder does
        raise DataError(f"the rows of {name} cannot be read: {on_one_line(error)}") from error


def _numbered(rows: Iterable[dict[str, Any]], name: str) -> Iterator[Row]:
    return ((f"row {number} of {name}", row) for number, row in enumerate(rows, start=1))


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError('reading a dataset needs datasets: pip install "antefix[train]".') from error
    return datasets
