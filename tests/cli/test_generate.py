"""`antefix generate`: prompts and files, and what it refuses."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing

import antefix
from antefix.cli.generate import _read_lines
from antefix.embedded.records import prompt
from antefix.training.base import load_base
from antefix.training.generation import answers
from tests.cli.conftest import Invoke, run
from tests.conftest import build_model

RECORD = "name: Danora Mokins | job: baker | town: Benton | age: 41 | likes: chess"


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """Save the prefix of a header, so that no training is needed to have one that matters."""
    model, preprocessor = load_base("embedded")
    bank = antefix.attach(model)
    config = antefix.PrefixConfig(12, init_text="style: letter\nname: Bo Li | job: cook\n=>\nDear Bo Li,")
    bank.add("letter", config, tokenizer=preprocessor.tokenizer, metadata={"training": {"prompt": prompt("{source}")}})
    bank.save("letter", tmp_path / "letter.safetensors")
    return tmp_path / "letter.safetensors"


def test_a_new_process_writes_what_this_one_does(prefix: Path) -> None:
    model, preprocessor = load_base("embedded")
    bank = antefix.attach(model)
    bank.load(prefix, name="letter")
    (bare,) = answers(model, preprocessor, [prompt(RECORD)], 30)
    with bank.use("letter"):
        (expected,) = answers(model, preprocessor, [prompt(RECORD)], 30)
    assert expected != bare
    text = f"{RECORD}\\n=>\\n"
    with_prefix = run("generate", "--model", "embedded", "--prefix", prefix, "--prompt", text, "--max-new-tokens", 30)
    without = run("generate", "--model", "embedded", "--prompt", text, "--max-new-tokens", 30)
    assert with_prefix.stdout.strip() == expected.strip()
    assert without.stdout.strip() == bare.strip()


def test_files_of_prompts(invoke: Invoke, prefix: Path, tmp_path: Path) -> None:
    rows, lines = tmp_path / "rows.jsonl", tmp_path / "lines.txt"
    records = [RECORD, RECORD.replace("Danora", "Eve")]
    rows.write_text("".join(json.dumps({"source": record}) + "\n" for record in records))
    lines.write_text("\n\n".join(records) + "\n")
    base = ("generate", "--model", "embedded", "--prefix", prefix, "--max-new-tokens", 20)
    first, second = invoke(*base, "--file", rows, "--template", "{source}"), invoke(*base, "--file", lines)
    assert first.exit_code == 0, first.output
    assert first.stdout == second.stdout
    told, given = (invoke(*base, "--file", rows, *more) for more in ((), ("--template", prompt("{source}"))))
    assert told.stdout == given.stdout != first.stdout
    lines.write_text(lines.read_text(), encoding="utf-8-sig")
    assert invoke(*base, "--file", lines).stdout == first.stdout
    lines.write_text("The sea.\u2028It is blue.\n")
    assert _read_lines(lines) == ["The sea.\u2028It is blue."], "one line"
    lines.write_text("\\theta = \\nabla f in C:\\new\n")
    assert _read_lines(lines) == ["\\theta = \\nabla f in C:\\new"], "taken as it is"
    assert len(first.stdout.strip().splitlines()) >= 2


@pytest.mark.parametrize(
    "metadata",
    [
        {"training": {"model": "embedded"}, "base_model": "elsewhere"},
        {"training": {"model": ["no name"]}, "distillation": {"model": "embedded"}},
        {"training": 3, "base_model": "embedded"},
    ],
)
def test_a_prefix_tells_its_model(invoke: Invoke, prefix: Path, metadata: dict[str, object]) -> None:
    held = antefix.load_prefix(prefix)
    antefix.save_prefix(replace(held, metadata=metadata), prefix)
    answered = invoke("generate", "--prefix", prefix, "--prompt", "The", "--max-new-tokens", 3)
    assert answered.exit_code == 0, answered.output


def test_without_a_prefix_that_tells_its_model_it_must_be_given(invoke: Invoke, prefix: Path) -> None:
    held = antefix.load_prefix(prefix)
    antefix.save_prefix(replace(held, metadata={}), prefix)
    for asked in ((), ("--prefix", prefix)):
        untold = invoke("generate", *asked, "--prompt", "The")
        assert untold.exit_code == 1
        assert "there is no prefix that tells its base model; give --model." in " ".join(untold.output.split())


def test_a_prefix_tells_the_tokenizer_of_its_answers(invoke: Invoke, prefix: Path) -> None:
    """Seen by one that is not there."""
    held = antefix.load_prefix(prefix)
    antefix.save_prefix(replace(held, metadata={"training": {"model": "embedded", "answer_tokenizer": "no"}}), prefix)
    asked = ("generate", "--prefix", prefix, "--prompt", "The", "--max-new-tokens", 3)
    assert "the tokenizer 'no' cannot be loaded" in " ".join(invoke(*asked).output.split())
    assert invoke(*asked, "--answer-tokenizer", "embedded").exit_code == 0


def test_a_damaged_prefix_and_one_that_chooses_labels_write_nothing(invoke: Invoke, prefix: Path) -> None:
    asked = ("generate", "--model", "embedded", "--prefix", prefix, "--prompt", "The", "--max-new-tokens", 3)
    whole = prefix.read_bytes()
    prefix.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1, whole[-1]]))
    damaged = invoke(*asked)
    prefix.write_bytes(whole)
    held = antefix.load_prefix(prefix)
    antefix.save_prefix(replace(held, metadata={"training": {"task": "classification"}}), prefix)
    chooses = invoke(*asked)
    for result, message in ((damaged, "holds other numbers than it was saved with"), (chooses, "to choose a label")):
        assert result.exit_code == 1
        assert message in " ".join(result.output.split())


def test_sampling_is_seeded(invoke: Invoke) -> None:
    base = ("generate", "--model", "embedded", "--prompt", "The", "--max-new-tokens", 15, "--temperature", 1.5)
    texts = [invoke(*base, "--seed", seed).stdout for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_prompt_without_tokens_is_refused(invoke: Invoke, tmp_path: Path) -> None:
    """Most tokenizers open even that with a token of their own, and the base goes on from it."""
    model, preprocessor = load_base("embedded")
    assert invoke("generate", "--model", "embedded", "--prompt", "", "--max-new-tokens", 2).exit_code == 0
    tokenizer = copy.deepcopy(preprocessor.tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "base")
    result = invoke("generate", "--model", tmp_path / "base", "--prompt", "")
    assert result.exit_code == 1, result.output
    assert "error: a prompt has no tokens" in result.stderr


def test_a_prefix_distilled_in_conversations_answers_a_user(invoke: Invoke, prefix: Path, tmp_path: Path) -> None:
    model, preprocessor = load_base("embedded")
    tokenizer = copy.deepcopy(preprocessor.tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "base")
    held = antefix.load_prefix(prefix)
    texts = []
    for told, asked in (({"chats": True}, []), ({"chats": False}, []), ({}, ["--messages", "turns"])):
        metadata = {"distillation": {"model": str(tmp_path / "base"), **told}}
        antefix.save_prefix(replace(held, metadata=metadata), tmp_path / "distilled.safetensors")
        file = tmp_path / "distilled.safetensors"
        result = invoke("generate", "--prefix", file, "--prompt", RECORD, *asked, "--max-new-tokens", 9)
        assert result.exit_code == 0, result.output
        texts.append(result.stdout)
    assert texts[0] == texts[2] != texts[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--prompt", "x", "--prefix", "missing"], "there is no prefix file at 'missing'"),
        (["--prompt", "x", "--prefix", "{cut}"], "cut.safetensors' is not an intact safetensors file"),
        (["--prompt", "x", "--prefix", "{foreign}"], "not a prefix file"),
        (["--prompt", "x", "--prefix", "{other}"], r"made for LlamaForCausalLM .* key_dim 32 instead of 8"),
        (["--prompt", "word " * 900], "need more than the 1024 positions"),
        (["--prompt", "x", "--prefix", "{prefix}", "--max-new-tokens", "1015"], r"the prefix \(12 tokens\)"),
        ([], "give either --prompt or --file"),
        (["--prompt", "x", "--temperature", "1e-40"], "temperature is 1e-40; it must be 0 or at least 0.01"),
        (["--file", "missing.txt"], "missing.txt' cannot be read"),
        (["--file", "rows.tsv"], r"--file is 'rows.tsv'; it must be prompts line by line in .txt"),
        (["--file", "{rows}"], "need --template"),
        (["--file", "{rows}", "--template", "{nothing}"], "names the field 'nothing'"),
        (["--prompt", "x", "--template", "{source}"], "--template fills the rows of a .jsonl"),
        (["--file", "{rows}", "--template", "{source}", "--messages", "m"], "leave --template out"),
        (["--prompt", "x", "--prefix", "."], "'.' is a folder; name a prefix file in it"),
    ],
)
def test_bad_input_gets_one_sentence(
    invoke: Invoke, prefix: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    from safetensors.torch import save_file

    files = {name: tmp_path / f"{name}.safetensors" for name in ("cut", "foreign", "other")}
    files |= {"rows": tmp_path / "rows.jsonl", "prefix": prefix}
    files["cut"].write_bytes(prefix.read_bytes()[:-100])
    save_file({"weight": torch.zeros(2)}, files["foreign"])
    bank = antefix.attach(build_model("llama"))
    bank.add("p", antefix.PrefixConfig(4, init="random"))
    bank.save("p", files["other"])
    files["rows"].write_text('{"source": "x"}\n')
    filled = [re.sub(r"^\{(cut|foreign|other|rows|prefix)\}$", lambda m: str(files[m[1]]), a) for a in arguments]
    result = invoke("generate", "--model", "embedded", *filled)
    assert result.exit_code == 1, result.output
    assert re.search(f"^error: .*{sentence}", result.stderr, re.MULTILINE), result.stderr
    assert result.stderr.strip().count("\n") == 0
    assert result.stdout == ""
