"""`antefix evaluate`: what is printed and written, on the embedded model and on real models and data."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from sacrebleu.metrics import BLEU

import antefix
from antefix.embedded.records import draw_examples, prompt
from antefix.training.base import load_base
from antefix.training.generation import answers
from tests.cli.conftest import Invoke
from tests.unit.test_classification import save

TEMPLATES = {"model": "embedded", "prompt": prompt("{source}"), "answer": "{target}"}


@pytest.fixture(scope="module")
def prefixes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Save prefixes made of a header's keys and values, so that no training is needed to have some that matter."""
    folder = tmp_path_factory.mktemp("prefixes")
    model, preprocessor = load_base("embedded")
    bank, paths = antefix.attach(model), {}
    for form in ("headline", "letter"):
        header = f"style: {form}\n"
        length = len(preprocessor.prompt_ids(header))
        config = antefix.PrefixConfig(length, init_text=header)
        bank.add(form, config, tokenizer=preprocessor.tokenizer, metadata={"training": TEMPLATES})
        paths[form] = folder / form / "prefix.safetensors"
        bank.save(form, paths[form])
    return paths


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in draw_examples("headline", 12, seed=9)))
    return path


def test_base_text_and_prefixes_side_by_side(
    invoke: Invoke, prefixes: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = invoke(
        "evaluate", "--data", data, "--prefix", prefixes["headline"], "--prefix", f"other={prefixes['letter']}",
        "--text", "style: headline\\n", "--output", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads((out / "evaluation.json").read_text())
    systems = found["systems"]
    assert list(systems) == ["base", "text", "headline", "other"]
    assert list(systems["base"]) == [
        "loss", "perplexity", "exact_match", "bleu", "chrf", "rouge1", "rouge2", "rougeL"
    ]  # fmt: skip
    assert systems["text"]["exact_match"] == 1.0 > systems["base"]["exact_match"]
    assert systems["headline"]["loss"] < systems["base"]["loss"] < systems["other"]["loss"]
    assert found["comparisons"]["text"]["chrf"]["p_value"] < 0.01
    assert found["settings"]["prompt"] == prompt("{source}")
    assert found["settings"]["texts"] == {"text": "style: headline\n"}
    assert "nrefs:1" in found["signatures"]["bleu"]
    assert (found["num_examples"], found["num_prompts"]) == (12, 12)
    markdown = (out / "evaluation.md").read_text()
    assert "| metric | base | text | headline | other |" in markdown
    assert "| exact match | " in markdown
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [row["answers"]["text"] for row in rows] == [row["references"][0] for row in rows]
    for words in (
        "12 examples, 12 distinct prompts",
        "ROUGE-L",
        "difference to base",
        "1,000 samples",
        "evaluation.md",
    ):
        assert words in result.output


def test_one_prefix_without_the_base(invoke: Invoke, prefixes: dict[str, Path], data: Path) -> None:
    result = invoke("evaluate", "--data", data, "--prefix", prefixes["headline"], "--no-base", "--metrics", "loss",
                    "--num-examples", 3)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "3 examples" in result.output
    assert not any(word in result.output for word in ("base", "bootstrap", "BLEU"))


def test_labels_are_scored(invoke: Invoke, tmp_path: Path) -> None:
    model, data, out = save(tmp_path / "bert", "BertForMaskedLM"), tmp_path / "d.csv", tmp_path / "out"
    words = ("sea", "bread", "book")
    data.write_text("text,label\n" + "".join(f"{words[n % 3]} {n},{'abc'[n % 3]}\n" for n in range(300)))
    trained = invoke(
        "train", "--task", "classification", "--model", model, "--data", data, "--eval-data", data, "--prompt",
        "{text}", "--answer", "{label}", "--epochs", 4, "--learning-rate", 0.02, "--init", "random", "--output", out,
        "--num-virtual-tokens", 4,
    )  # fmt: skip
    assert trained.exit_code == 0, trained.output
    result = invoke("evaluate", "--data", data, "--prefix", out / "prefix.safetensors", "--output", tmp_path / "e")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "e" / "evaluation.json").read_text())["systems"]
    metrics = json.loads((out / "metrics.json").read_text())
    assert found["base"] == pytest.approx(metrics["before"], rel=1e-5)
    assert found["out"] == pytest.approx(metrics["after"], rel=1e-5)
    assert found["out"]["macro_f1"] > found["base"]["macro_f1"] + 0.4
    other = invoke("evaluate", "--data", data, "--prefix", out / "prefix.safetensors", "--answer", "{text}")
    assert "the label 'sea 0' of 'sea 0' is none of the 3 trained, 'a', 'b', 'c'; leave" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "no prefix tells with which model it was trained; give --model"),
        (["--model", "embedded"], "no prefix tells with which prompt it was trained; give --prompt"),
        (["--prefix", "{headline}", "--no-base", "--metrics", "blue"], "no metric 'blue' for this task; it has 'loss'"),
        (["--prefix", "{headline}", "--prefix", "headline={letter}"], "two prefixes are named 'headline'"),
        (["--prefix", "base={headline}"], "two systems have the same name"),
        (["--prefix", "none"], "there is no prefix file at 'none'"),
        (["--prefix", "{headline}", "--prompt", "{nothing}"], "names the field 'nothing'"),
        (["--prefix", "{headline}", "--text", "none.txt"], r"there is no text file 'none\.txt'"),
        (["--prefix", "{headline}", "--text", "a " * 2000], "need more than the 1024 positions"),
        (["--model", "embedded", "--prompt", "x", "--answer", "{target}", "--no-base"], "there is nothing to evaluate"),
        (["--prefix", "{headline}", "--messages", "chat"], "the tokenizer has no chat template"),
    ],
)
def test_bad_input_gets_one_sentence(
    invoke: Invoke, prefixes: dict[str, Path], data: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    filled = [re.sub(r"\{(headline|letter)\}", lambda m: str(prefixes[m[1]]), argument) for argument in arguments]
    result = invoke("evaluate", "--data", data, "--output", tmp_path / "out", *filled)
    assert result.exit_code == 1, result.output
    assert re.search(f"^error: .*{sentence}", result.stderr), result.stderr
    assert result.stderr.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_one_is_refused_before_the_work(
    invoke: Invoke, prefixes: dict[str, Path], data: Path
) -> None:
    asked = ("--data", data, "--prefix", prefixes["headline"], "--output", prefixes["letter"])
    result = invoke("evaluate", *asked)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "is a file; name a folder" in result.stderr


def test_systems_can_be_told_apart_on_a_narrow_screen(
    invoke: Invoke, prefixes: dict[str, Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    asked = [part for name in ("headline", "letter") for part in ("--prefix", prefixes[name])]
    result = invoke("evaluate", "--data", data, *asked, "--metrics", "loss", "--num-examples", 4)
    assert result.exit_code == 0, result.output
    assert "…" not in result.stdout


def test_several_references_of_restaurants(invoke: Invoke, shared: Path, tmp_path: Path) -> None:
    """Human references among themselves, so that BLEU is not near zero: each prompt's first is taken for the answer."""
    model, source = shared / "models" / "stories260K", shared / "data" / "e2e_nlg"
    rows = [json.loads(line) for line in (source / "test.jsonl").read_text().splitlines()]
    few = [mr for mr, _ in Counter(row["mr"] for row in rows).most_common(4)]
    chosen = [row for row in rows if row["mr"] in few]
    data, out = tmp_path / "test.jsonl", tmp_path / "out"
    data.write_text("".join(json.dumps(row) + "\n" for row in chosen))
    first = json.loads(gzip.decompress((source / "train.jsonl.gz").read_bytes()).splitlines()[0])
    text = f"{first['mr']}\n{first['ref']}\n"
    result = invoke(
        "evaluate", "--model", model, "--data", data, "--prompt", "{mr}\\n", "--answer", "{ref}", "--text", text,
        "--output", out, "--max-new-tokens", 40,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads((out / "evaluation.json").read_text())
    assert (found["num_examples"], found["num_prompts"]) == (len(chosen), 4)
    references = [[row["ref"] for row in chosen if row["mr"] == mr] for mr in dict.fromkeys(r["mr"] for r in chosen)]
    base, preprocessor = load_base(str(model))
    given = answers(base, preprocessor, [text + mr + "\n" for mr in dict.fromkeys(r["mr"] for r in chosen)], 40)
    most = max(map(len, references))
    streams = [[texts[n] if n < len(texts) else None for texts in references] for n in range(most)]
    assert found["systems"]["text"]["bleu"] == pytest.approx(BLEU().corpus_score(given, streams).score)
    print(f"E2E: {found['systems']}")


def test_phonemes_of_an_encoder_decoder(invoke: Invoke, shared: Path, tmp_path: Path) -> None:
    model, words = shared / "models" / "bart-g2p-us", (shared / "data" / "g2p_gb" / "test.jsonl").read_text()
    data, out = tmp_path / "test.jsonl", tmp_path / "out"
    known = [line for line in words.splitlines(keepends=True) if json.loads(line)["us"]]
    data.write_text("".join(known[:60]))
    result = invoke(
        "evaluate", "--model", model, "--answer-tokenizer", model / "phonemes", "--data", data, "--prompt", "{word}",
        "--answer", "{us}", "--metrics", "exact_match", "--metrics", "chrf", "--output", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    figures = json.loads((out / "evaluation.json").read_text())["systems"]["base"]
    print(f"American phonemes by the American model: {figures}")
    assert figures["exact_match"] > 0.5
    assert figures["chrf"] > 80


def test_a_name_is_shown_as_it_is_written(
    invoke: Invoke, prefixes: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """Brackets mark up text for the terminal elsewhere; here they are of a folder's name."""
    named = [f"{name}={prefixes['headline']}" for name in ("run[0.1]", "run[/b]")]
    result = invoke(
        "evaluate", "--data", data, "--prefix", named[0], "--prefix", named[1], "--metrics", "loss",
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "run[0.1]" in result.stdout
    assert "run[/b]" in result.stdout


def test_a_prompt_without_tokens_is_named(invoke: Invoke, tmp_path: Path) -> None:
    model, preprocessor = load_base("embedded")
    model.save_pretrained(tmp_path / "base")
    tokenizer = preprocessor.tokenizer
    tokenizer._tokenizer.post_processor = None
    tokenizer.save_pretrained(tmp_path / "base")
    data = tmp_path / "d.jsonl"
    data.write_text('{"a": "", "b": "Bo"}\n{"a": "x", "b": "Bo"}\n')
    arguments = ("--model", tmp_path / "base", "--data", data, "--prompt", "{a}", "--answer", "{b}")
    refused = invoke("evaluate", *arguments)
    assert refused.exit_code == 1
    assert "a prompt has no tokens" in refused.stderr
    assert invoke("evaluate", *arguments, "--metrics", "loss").exit_code == 0
