"""Sources of data: what is read, and the sentence for what cannot be."""

from __future__ import annotations

import gzip
import json
import sys
import tracemalloc
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, Image

from antefix.errors import ConfigError, DataError
from antefix.training.rows import is_table, read_rows, stream_rows

ROWS = [{"a": "x", "b": 1}, {"a": "y", "b": 2}, {"a": "z", "b": 3}]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_json_lines_csv_and_gzip_give_the_same_rows(tmp_path: Path) -> None:
    expected = [{"a": "x, y", "b": "é\nz"}, {"a": "1", "b": ""}]
    lines = '{"a": "x, y", "b": "é\\nz"}\n\n{"a": "1", "b": ""}\n'
    table = '\ufeffa,b\n"x, y","é\nz"\n1,\n'
    packed = tmp_path / "d.jsonl.gz"
    packed.write_bytes(gzip.compress(lines.encode()))
    for path in (write(tmp_path / "d.jsonl", lines), write(tmp_path / "d.csv", table), packed):
        assert [row for _, row in read_rows(path)] == expected
    for name in ("d.jsonl", "d.csv", "d.jsonl.gz"):
        assert len(read_rows(tmp_path / name, limit=1)) == 1
    assert read_rows(write(tmp_path / "blank.csv", "\n\na\n\nx\n")) == [
        (f"line 5 of '{tmp_path / 'blank.csv'}'", {"a": "x"})
    ]
    long = "word " * 50_000
    assert read_rows(write(tmp_path / "long.csv", f"a,b\n{long},1\n"))[0][1]["a"] == long


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.jsonl", '{"a": 1}\n{"a": \n', "line 2 of .*d.jsonl' is not valid JSON"),
        ("d.jsonl", '{"a": 1}\n[1]\n', "line 2 .* must be an object"),
        ("d.jsonl", "\n\n", "holds no examples"),
        ("d.jsonl", "[" * 100_000, "line 1 of .* is not valid JSON"),
        ("d.csv", "", "holds no examples"),
        ("d.csv", "a,b\n1,2\n3\n", "line 3 .* does not have the 2 columns"),
        ("d.csv", "\n \n\r\na,b\n1,2\n3\n", "line 6 .* does not have the 2 columns that the header names"),
        ("d.csv", "\n\n", "holds no examples"),
        ("d.csv", "a,b\n1,2,3\n", "line 2 .* does not have the 2 columns"),
        ("d.csv", 'a,b\n1,"2\n', "is not valid CSV"),
        ("d.csv", "a,a\n1,2\n", "names a column twice"),
        ("d.parquet", "x", "d.parquet' cannot be read: .*Parquet"),
        ("d.txt", "x", "d.txt' must be a file in .jsonl, .csv or .parquet"),
        ("d.jsonl.gz", "not gzipped", "cannot be read"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_rows(write(tmp_path / name, text))


def test_missing_and_binary_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_rows(tmp_path / "missing.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "binary.jsonl")


def fields(source: Path, **choices: object) -> list[dict[str, object]]:
    return [row for _, row in read_rows(source, **choices)]


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    Dataset.from_list(ROWS).to_parquet(str(path))
    assert is_table(path)
    assert fields(path) == ROWS
    assert fields(path, limit=2) == ROWS[:2]
    assert read_rows(path)[1][0] == f"row 2 of '{path}'"


def test_folders_that_datasets_wrote(tmp_path: Path) -> None:
    one, several, single = tmp_path / "one", tmp_path / "several", tmp_path / "single"
    Dataset.from_list(ROWS).save_to_disk(str(one))
    splits = {"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])}
    DatasetDict(splits).save_to_disk(str(several))
    DatasetDict({"validation": Dataset.from_list(ROWS[1:])}).save_to_disk(str(single))
    assert fields(one) == fields(several) == fields(several, split="train") == ROWS
    assert fields(several, split="test") == ROWS[:1]
    assert fields(single) == ROWS[1:]
    assert fields(one, limit=1) == ROWS[:1]
    for folder, split, message in (
        (one, "test", "holds one dataset, which has no split 'test'"),
        (several, "dev", "has no split 'dev'; it has 'train', 'test'"),
        (tmp_path, None, "is not one that datasets' save_to_disk wrote"),
    ):
        with pytest.raises(DataError, match=message):
            read_rows(folder, split=split)
    (one / "state.json").write_text("{")
    with pytest.raises(DataError, match="is not one that datasets' save_to_disk wrote"):
        read_rows(one)


def test_a_row_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    broken = Dataset.from_list([{"picture": b"no picture"}]).cast_column("picture", Image())
    broken.save_to_disk(str(tmp_path / "pictures"))
    with pytest.raises(DataError, match=r"the rows of '.*pictures' cannot be read: cannot identify image"):
        read_rows(tmp_path / "pictures")


def test_the_hub_is_asked_for_what_is_no_file() -> None:
    for name in ("nobody/nothing", "nothing"):
        with pytest.raises(DataError, match=f"'{name}' is neither a file nor a dataset of the hub that can be loaded"):
            read_rows(name, config="en", split="test")


def test_the_hub_gets_name_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network here: what `datasets` is asked for is caught where it would go out."""
    asked = []

    def load_dataset(*arguments: object, **settings: object) -> Dataset:
        asked.append((arguments, settings))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert fields("someone/some-data", config="en", split="test[:3]", limit=2) == ROWS[:2]
    assert read_rows("someone/some-data")[0][0] == "row 1 of 'someone/some-data' (train)"
    assert asked == [
        (("someone/some-data", "en"), {"split": "test[:3]"}),
        (("someone/some-data", None), {"split": "train"}),
    ]


def test_a_file_has_no_splits(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", '{"a": 1}')
    with pytest.raises(DataError, match="is a file, which has no configurations and splits"):
        read_rows(path, split="test")


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pyarrow", "datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    for source in (write(tmp_path / "d.parquet", ""), tmp_path, "someone/some-data"):
        with pytest.raises(ConfigError, match=r'pip install "antefix\[train\]"'):
            read_rows(source)


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.jsonl.gz", "d.parquet"])
def test_a_stream_keeps_no_rows(name: str, tmp_path: Path) -> None:
    """Twenty times as many rows take no more memory, which `tracemalloc` counts of Python's objects."""
    peaks = []
    for number in (5_000, 100_000):
        rows = [{"text": f"{n:>200}"} for n in range(number)]
        path = tmp_path / name
        if name == "d.parquet":
            Dataset.from_list(rows).to_parquet(path)
        else:
            lines = [row["text"] if name == "d.csv" else json.dumps(row) for row in rows]
            content = "\n".join(["text", *lines] if name == "d.csv" else lines).encode()
            path.write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
        del rows
        tracemalloc.start()
        assert sum(1 for _ in stream_rows(path)) == number
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] < 100_000 * 200 / 2
