"""`antefix convert` between prefix files and PEFT's folders, by the shapes of a model alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import antefix
from antefix.initialize import random_prefix
from antefix.peft_format import write_peft
from antefix.prefix import Prefix
from tests.cli.conftest import Invoke
from tests.conftest import build_model

TOKENS = 4


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a folder with a configuration and no weights."""
    build_model("llama").config.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.fixture
def prefix() -> Prefix:
    made = random_prefix(antefix.discover_sites(build_model("llama")), TOKENS)
    return Prefix(made.sites, made.keys, made.values, {"base_model": "tiny/llama"})


def test_there_and_back(invoke: Invoke, model: Path, prefix: Prefix, tmp_path: Path) -> None:
    file, folder, again = tmp_path / "p.safetensors", tmp_path / "peft", tmp_path / "again.safetensors"
    antefix.save_prefix(prefix, file)
    for source, target in ((file, folder), (folder, again)):
        result = invoke("convert", "--prefix", source, "--output", target, "--model", model)
        assert result.exit_code == 0, result.output
        assert result.stdout.strip() == str(target)
    loaded = antefix.load_prefix(again)
    assert loaded.sites == prefix.sites
    assert all(torch.equal(loaded.keys[path], key) for path, key in prefix.keys.items())
    assert all(torch.equal(loaded.values[path], value) for path, value in prefix.values.items())
    assert loaded.metadata["base_model"] == "tiny/llama"
    assert loaded.metadata["peft"] == {"peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM"}
    bank = antefix.attach(build_model("llama"))
    bank.load(again, "p")
    bank.load(folder, "q")


def test_what_peft_is_told(invoke: Invoke, model: Path, prefix: Prefix, tmp_path: Path) -> None:
    file, folder = tmp_path / "p.safetensors", tmp_path / "peft"
    antefix.save_prefix(prefix, file)
    told = ("--base-model", "mine/llama", "--task-type", "FEATURE_EXTRACTION")
    result = invoke("convert", "--prefix", file, "--output", folder, "--model", model, *told)
    assert result.exit_code == 0, result.output
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["task_type"]) == ("mine/llama", "FEATURE_EXTRACTION")
    assert load_file(folder / "adapter_model.safetensors")["prompt_embeddings"].shape == (TOKENS, 2 * 3 * 16)
    refused = invoke("convert", "--prefix", folder, "--output", tmp_path / "x", "--model", model, *told)
    assert refused.exit_code == 1
    assert "for PEFT's folder" in refused.stderr


def test_a_prefix_with_labels_is_one_that_classifies(
    invoke: Invoke, model: Path, prefix: Prefix, tmp_path: Path
) -> None:
    file, folder = tmp_path / "p.safetensors", tmp_path / "peft"
    labelled = {**prefix.metadata, "labels": ["a", "b"]}
    antefix.save_prefix(replace(prefix, metadata=labelled, modules={"score:weight": torch.ones(2, 32)}), file)
    result = invoke("convert", "--prefix", file, "--output", folder, "--model", model)
    assert result.exit_code == 0, result.output
    assert json.loads((folder / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"


@pytest.mark.parametrize("other", ["gpt2", "t5"])
def test_another_model_is_refused_and_nothing_is_written(
    invoke: Invoke, prefix: Prefix, tmp_path: Path, other: str
) -> None:
    file, folder = tmp_path / "p.safetensors", tmp_path / "peft"
    antefix.save_prefix(prefix, file)
    write_peft(prefix, folder, build_model("llama"))
    build_model(other).config.save_pretrained(tmp_path / other)
    for source in (file, folder):
        target = tmp_path / "new"
        result = invoke("convert", "--prefix", source, "--output", target, "--model", tmp_path / other)
        assert result.exit_code == 1
        assert "does not fit this model" in result.stderr
        assert not target.exists()


def test_plain_errors(invoke: Invoke, model: Path, prefix: Prefix, tmp_path: Path) -> None:
    antefix.save_prefix(prefix, tmp_path / "p.safetensors")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no prefix")
    cases = [
        ("nowhere", "out", model, "no prefix file"),
        ("text", "out", model, "not an intact safetensors file"),
        ("empty", "out", model, "no folder of a PEFT checkpoint"),
        ("p.safetensors", "text", model, "is a file"),
        ("p.safetensors", "out", tmp_path / "nomodel", "cannot be loaded: there is nothing at this path"),
    ]
    for source, target, base, message in cases:
        result = invoke("convert", "--prefix", tmp_path / source, "--output", tmp_path / target, "--model", base)
        assert result.exit_code == 1, source
        assert message in result.stderr
        assert not (tmp_path / "out").exists()
    write_peft(prefix, tmp_path / "peft", build_model("llama"))
    result = invoke("convert", "--prefix", tmp_path / "peft", "--output", tmp_path / "empty", "--model", model)
    assert result.exit_code == 1
    assert "is a folder" in result.stderr


def test_only_a_prefix_or_a_checkpoint_is_replaced(invoke: Invoke, model: Path, prefix: Prefix, tmp_path: Path) -> None:
    antefix.save_prefix(prefix, tmp_path / "p.safetensors")
    data, folder = tmp_path / "data.jsonl", tmp_path / "folder"
    data.write_text("{}")
    folder.mkdir()
    (folder / "data.arrow").write_text("rows")
    mixed = invoke("convert", "--prefix", tmp_path / "p.safetensors", "--output", folder, "--model", model)
    assert (mixed.exit_code, [path.name for path in folder.iterdir()]) == (1, ["data.arrow"])
    assert "holds other things than a checkpoint of PEFT" in mixed.stderr
    for path in folder.iterdir():
        path.unlink()
    lora = json.dumps({"peft_type": "LORA", "r": 8})
    (folder / "adapter_config.json").write_text(lora)
    mixed = invoke("convert", "--prefix", tmp_path / "p.safetensors", "--output", folder, "--model", model)
    assert (mixed.exit_code, (folder / "adapter_config.json").read_text()) == (1, lora)
    arguments = ("--output", tmp_path / "peft", "--model", model)
    for _ in range(2):  # its own kind is replaced
        assert invoke("convert", "--prefix", tmp_path / "p.safetensors", *arguments).exit_code == 0
    lost = invoke("convert", "--prefix", tmp_path / "peft", "--output", data, "--model", model)
    assert (lost.exit_code, data.read_text()) == (1, "{}")
    assert "holds no prefix, so it is not replaced" in lost.stderr


def test_a_task_that_peft_does_not_know(invoke: Invoke, model: Path, prefix: Prefix, tmp_path: Path) -> None:
    antefix.save_prefix(prefix, tmp_path / "p.safetensors")
    arguments = ("--output", tmp_path / "peft", "--model", model, "--task-type", "CAUSAL")
    refused = invoke("convert", "--prefix", tmp_path / "p.safetensors", *arguments)
    assert refused.exit_code == 1
    assert "task_type is 'CAUSAL'; PEFT has CAUSAL_LM, SEQ_2_SEQ_LM" in refused.stderr
    assert not (tmp_path / "peft").exists()


@pytest.mark.parametrize(
    ("family", "model_class", "task_type"),
    [
        ("llama", "LlamaForQuestionAnswering", "QUESTION_ANS"),
        ("llama", "LlamaForTokenClassification", "TOKEN_CLS"),
        ("llama", "LlamaModel", "FEATURE_EXTRACTION"),
        ("t5", "T5ForSequenceClassification", "SEQ_CLS"),
    ],
)
def test_attention_lies_where_the_model_of_the_task_has_it(
    invoke: Invoke, tmp_path: Path, family: str, model_class: str, task_type: str
) -> None:
    """The paths differ from those of the model that writes."""
    base = getattr(transformers, model_class)(build_model(family).config)
    bank = antefix.attach(base.eval())
    head = [name for name, _ in base.named_children() if name in ("score", "qa_outputs", "classification_head")]
    bank.add("p", antefix.PrefixConfig(TOKENS, sites=("decoder",), init="random", trainable_modules=head))
    file, folder, again = tmp_path / "p.safetensors", tmp_path / "peft", tmp_path / "again.safetensors"
    bank.save("p", file)
    base.config.save_pretrained(tmp_path / "base")
    there = invoke(
        "convert", "--prefix", file, "--output", folder, "--model", tmp_path / "base", "--task-type", task_type
    )
    assert there.exit_code == 0, there.output
    back = invoke("convert", "--prefix", folder, "--output", again, "--model", tmp_path / "base")
    assert back.exit_code == 0, back.output
    bank.load(again, "again")
    assert bank.prefix("again").content_hash() == bank.prefix("p").content_hash()


def test_a_checkpoint_without_a_task_tells_the_class_of_its_base(
    invoke: Invoke, model: Path, prefix: Prefix, tmp_path: Path
) -> None:
    """PEFT writes it as `auto_mapping`, and another class has its attention at other paths."""
    folder, file, base = tmp_path / "peft", tmp_path / "p.safetensors", build_model("llama")
    write_peft(prefix, folder, base)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings |= {
        "task_type": None,
        "auto_mapping": {"base_model_class": "LlamaModel", "parent_library": "transformers"},
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    assert invoke("convert", "--prefix", folder, "--output", file, "--model", model).exit_code == 0
    antefix.attach(base.model).load(file, "p")
