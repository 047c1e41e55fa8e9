"""Data files and templates: what is read, and the sentence for what cannot be."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from antefix.embedded import model_path
from antefix.errors import DataError
from antefix.training.data import Collator, Example, ExampleTokenizer, Template, fill_templates, read_rows, unescape


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
    assert len(read_rows(packed, limit=1)) == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.jsonl", '{"a": 1}\n{"a": \n', "line 2 of .*d.jsonl' is not valid JSON"),
        ("d.jsonl", '{"a": 1}\n[1]\n', "line 2 .* must be an object"),
        ("d.jsonl", "\n\n", "holds no examples"),
        ("d.jsonl", "[" * 100_000, "line 1 of .* is not valid JSON"),
        ("d.csv", "", "holds no examples"),
        ("d.csv", "a,b\n1,2\n3\n", "line 3 .* does not have the 2 columns"),
        ("d.csv", "a,b\n1,2,3\n", "line 2 .* does not have the 2 columns"),
        ("d.csv", 'a,b\n1,"2\n', "is not valid CSV"),
        ("d.csv", "a,a\n1,2\n", "names a column twice"),
        ("d.parquet", "x", "must end in .jsonl or .csv"),
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


def test_a_null_field_is_named() -> None:
    with pytest.raises(DataError, match="field 'us' of line 3 is null"):
        Template("{us}").fill({"us": None}, "line 3")


def test_escapes_of_the_command_line() -> None:
    assert unescape(r"a\n\tb\\n") == "a\n\tb\\n"


def test_templates_fill_fields_and_keep_doubled_braces() -> None:
    rows = [("line 1", {"q": "why?", "n": 3})]
    (example,) = fill_templates(rows, Template("{{Q}} {q} {n}\n"), Template("{q}"))
    assert example == Example("{Q} why? 3\n", "why?")


def test_an_unknown_field_is_named_with_those_there_are() -> None:
    with pytest.raises(DataError, match=r"names the field 'question', but line 7 has 'q', 'a'"):
        Template("{question}").fill({"q": 1, "a": 2}, "line 7")


@pytest.mark.parametrize("text", ["{", "}", "{}", "{0.x}", "{a.__class__}", "{a[0]}", "{a!r}", "{a:>10}", "{0}"])
def test_templates_are_fields_only(text: str) -> None:
    with pytest.raises(DataError, match="template"):
        Template(text)


def test_a_causal_prompt_has_no_labels_and_an_answer_ends() -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    row = ExampleTokenizer(tokenizer, tokenizer, False, 100).encode(Example("The sea\n", "a boat"))
    prompt, answer = tokenizer("The sea\n")["input_ids"], tokenizer("a boat", add_special_tokens=False)["input_ids"]
    assert prompt[0] == tokenizer.bos_token_id
    assert row["input_ids"] == [*prompt, *answer, tokenizer.eos_token_id]
    assert row["labels"] == [-100] * len(prompt) + [*answer, tokenizer.eos_token_id]
    with pytest.raises(DataError, match="max_length=3"):
        ExampleTokenizer(tokenizer, tokenizer, False, 3).encode(Example("The sea\n", "a boat"))


def test_batches_are_padded_on_the_right() -> None:
    batch = Collator(9)([{"input_ids": [1, 2, 3], "labels": [1]}, {"input_ids": [4], "labels": [5, 6]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, -100], [5, 6]]
