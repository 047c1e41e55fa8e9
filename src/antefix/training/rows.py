"""Rows of data, from files, from folders that `datasets` wrote, and from the hub."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from antefix.errors import ConfigError, DataError

Row = tuple[str, dict[str, Any]]
"""Where a row comes from, as an error names it, and its fields."""

TABLES = ("csv", "jsonl", "json", "parquet")


def is_table(path: Path) -> bool:
    """Tell by its name whether a file holds rows with fields."""
    return _suffix(path) in TABLES


def read_rows(
    source: str | Path, limit: int | None = None, config: str | None = None, split: str | None = None
) -> list[Row]:
    """Read rows, at most `limit` of them, as `(where, fields)`.

    `source` is a file of JSON Lines, CSV (either may be gzipped) or Parquet, a folder that `Dataset.save_to_disk` or
    `DatasetDict.save_to_disk` wrote, or a dataset of the hub, which `config` and `split` choose from as in
    `datasets.load_dataset`. Without `split` it is the only one there is, or "train".
    Raises `DataError` with the place of what is broken, and for data without examples.
    """
    path = Path(source)
    if path.is_dir():
        rows = _rows_of_folder(path, limit, split)
    elif path.is_file() or is_table(path) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)):
        if config is not None or split is not None:
            raise DataError(f"'{source}' is a file, which has no configurations and splits to choose from.")
        rows = _rows_of_file(path, limit)
    else:
        rows = _rows_of_hub(str(source), limit, config, split or "train")
    if not rows:
        raise DataError(f"the data '{source}' holds no examples.")
    return rows[:limit]


def _rows_of_file(path: Path, limit: int | None) -> list[Row]:
    suffix = _suffix(path)
    if suffix not in TABLES:
        raise DataError(f"the data '{path}' must be a file in .jsonl, .csv or .parquet, or the name of a dataset.")
    if suffix == "parquet":
        return _parquet_rows(path, limit)
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"the data file '{path}' cannot be read: {reason}.") from error
    return _csv_rows(text, path) if suffix == "csv" else _json_rows(text, path, limit)


def _suffix(path: Path) -> str:
    return path.name.removesuffix(".gz").rpartition(".")[2].lower()


def _json_rows(text: str, path: Path, limit: int | None) -> list[Row]:
    rows: list[Row] = []
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


def _csv_rows(text: str, path: Path) -> list[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
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


def _parquet_rows(path: Path, limit: int | None) -> list[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ConfigError('reading Parquet needs pyarrow: pip install "antefix[train]".') from error
    try:
        table = parquet.read_table(path)
    except (OSError, ArrowException) as error:
        raise DataError(f"the data file '{path}' cannot be read: {_on_one_line(error)}.") from error
    return _numbered(table.slice(0, limit).to_pylist(), f"'{path}'")


def _rows_of_folder(path: Path, limit: int | None, split: str | None) -> list[Row]:
    datasets = _datasets()
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # a damaged folder fails in whatever way the damage happens to show
        raise DataError(
            f"the folder '{path}' is not one that datasets' save_to_disk wrote: {_on_one_line(error)}"
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        wanted = split or (next(iter(loaded)) if len(loaded) == 1 else "train")
        if wanted not in loaded:
            raise DataError(f"the folder '{path}' has no split '{wanted}'; it has {', '.join(map(repr, loaded))}.")
        loaded = loaded[wanted]
    elif split is not None:
        raise DataError(f"the folder '{path}' holds one dataset, which has no split '{split}' to choose.")
    return _rows_of_dataset(loaded, limit, f"'{path}'")


def _rows_of_hub(name: str, limit: int | None, config: str | None, split: str) -> list[Row]:
    datasets = _datasets()
    try:
        loaded = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the hub, the network, the cache and every builder have errors of their own
        raise DataError(
            f"'{name}' is neither a file nor a dataset of the hub that can be loaded: {_on_one_line(error)}"
        ) from error
    return _rows_of_dataset(loaded, limit, f"'{name}' ({split})")


def _rows_of_dataset(dataset: Any, limit: int | None, name: str) -> list[Row]:
    chosen = dataset if limit is None else dataset.select(range(min(limit, len(dataset))))
    return _numbered(chosen, name)


def _numbered(rows: Iterable[dict[str, Any]], name: str) -> list[Row]:
    return [(f"row {number} of {name}", row) for number, row in enumerate(rows, start=1)]


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError('reading a dataset needs datasets: pip install "antefix[train]".') from error
    return datasets


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())
