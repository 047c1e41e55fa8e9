"""`antefix train` on what is more than prompts and answers: conversations, labels, long examples, other sources."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import antefix
from antefix.embedded import model_path
from antefix.embedded.records import draw_examples
from tests.cli.conftest import Invoke
from tests.unit.test_classification import save

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
    "{% else %}{{ '\n=>\n' }}{% endif %}{% endfor %}"
)


@pytest.fixture
def chat_model(tmp_path: Path) -> Path:
    """Save the embedded model with a chat template that writes what it was pretrained on."""
    folder = tmp_path / "chat-model"
    AutoModelForCausalLM.from_pretrained(model_path()).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def write_chats(path: Path, rows: list[dict[str, str]]) -> Path:
    chats = [
        [{"role": "user", "content": row["source"]}, {"role": "assistant", "content": row["target"]}] for row in rows
    ]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    return path


def test_conversations_train_as_the_same_prompts_and_answers(
    invoke: Invoke, chat_model: Path, data: Path, tmp_path: Path
) -> None:
    """The chat template writes what the templates of prompt and answer write, so every loss is the same."""
    chats = write_chats(tmp_path / "chats.jsonl", [json.loads(line) for line in data.read_text().splitlines()])
    common = ("train", "--model", chat_model, "--epochs", 2, "--num-virtual-tokens", 4, "--exact-match")
    a = invoke(*common, "--data", chats, "--messages", "messages", "--output", tmp_path / "a")
    b = invoke(
        *common, "--data", data, "--prompt", "{source}\\n=>\\n", "--answer", "{target}", "--output", tmp_path / "b"
    )
    assert a.exit_code == b.exit_code == 0, a.output + b.output
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in "ab")
    for part in ("before", "after", "train_loss", "lengths"):
        assert first[part] == second[part]

    prefix = tmp_path / "a" / "prefix.safetensors"
    question = tmp_path / "question.jsonl"
    source = draw_examples("headline", 1, seed=9)[0]["source"]
    question.write_text(json.dumps({"messages": [{"role": "user", "content": source}]}))
    generate = ("generate", "--model", chat_model, "--max-new-tokens", 12)
    from_file = invoke(*generate, "--prefix", prefix, "--file", question)
    from_prompt = invoke(*generate, "--prefix", prefix, "--prompt", source)
    plain = invoke(*generate, "--prefix", tmp_path / "b" / "prefix.safetensors", "--prompt", f"{source}\\n=>\\n")
    assert from_file.exit_code == 0, from_file.output
    assert from_file.stdout == from_prompt.stdout == plain.stdout != ""
    refused = invoke(*generate[:3], "--prefix", prefix, "--prompt", source, "--max-new-tokens", 1024)
    length = len(AutoTokenizer.from_pretrained(chat_model)(f"{source}\n=>\n")["input_ids"])
    assert f"the prompt ({length})" in refused.stderr, "the template's opening token is the only one"
    assert invoke(*generate, "--messages", "messages", "--file", question).exit_code == 0


def test_a_prefix_and_its_head_learn_labels(invoke: Invoke, tmp_path: Path) -> None:
    model = save(tmp_path / "bert", "BertForMaskedLM")
    kinds = {"job": "person", "food": "place", "topic": "book"}
    texts = [row["source"] for row in draw_examples("plain", 400, seed=1)]
    known = [{"text": text, "kind": next(kinds[field] for field in kinds if f"{field}: " in text)} for text in texts]
    data = tmp_path / "kinds.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in known))
    out = tmp_path / "out"
    result = invoke(
        "train", "--task", "classification", "--model", model, "--data", data, "--prompt", "{text}", "--answer",
        "{kind}", "--epochs", 12, "--init", "random", "--output", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["after"]) == {"loss", "accuracy", "macro_f1"}
    assert set(metrics["lengths"]) == {"prompt"}
    assert metrics["after"]["accuracy"] > 0.8 > metrics["before"]["accuracy"] + 0.2
    prefix = antefix.load_prefix(out / "prefix.safetensors")
    assert prefix.metadata["labels"] == ["book", "person", "place"]
    assert {name.partition(":")[0] for name in prefix.modules} == {"classifier", "bert.pooler.dense"}
    assert "accuracy" in result.output
    assert "macro F1" in result.output


def step_losses(invoke: Invoke, folder: Path, recipe: str) -> list[list[float]]:
    """Return the losses of steps of one batch, and of three that are as large together."""
    found = []
    for batch_size, accumulation in ((12, 1), (4, 3)):
        path, output = folder / f"{batch_size}.yaml", folder / str(batch_size)
        path.write_text(
            f"{recipe}\nbatch_size: {batch_size}\ngradient_accumulation_steps: {accumulation}\nepochs: 2\n"
            f"output: {output}\nprefix: {{num_virtual_tokens: 2, init: random}}\n"
        )
        result = invoke("train", "--recipe", path)
        assert result.exit_code == 0, result.output
        found.append([entry["loss"] for entry in json.loads((output / "metrics.json").read_text())["train_loss"]])
    return found


def test_steps_of_several_batches_are_steps_of_one(invoke: Invoke, tmp_path: Path) -> None:
    """The loss of a classification is a mean, which Trainer must divide by the batches of a step."""
    model, data = save(tmp_path / "bert", "BertModel"), tmp_path / "d.csv"
    data.write_text("text,label\n" + "".join(f"The sea {n},{n % 2}\n" for n in range(40)))
    recipe = f"task: classification\nmodel: {model}\ndata: {data}\nprompt: '{{text}}'\nanswer: '{{label}}'"
    whole, parts = step_losses(invoke, tmp_path, recipe)
    assert parts == pytest.approx(whole, rel=1e-4)


def test_answers_weigh_the_same_where_a_model_does_not_divide_by_their_labels(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Gemma 3n and 4 tell Trainer, whose loss of a step would be a mean of means."""
    monkeypatch.setattr(LlamaForCausalLM, "accepts_loss_kwargs", False, raising=False)
    data = tmp_path / "d.csv"
    data.write_text("text,answer\n" + "".join(f"sea {n},{'blue ' * (n % 7 + 1)}\n" for n in range(40)))
    recipe = f"model: embedded\ndata: {data}\nprompt: '{{text}}'\nanswer: '{{answer}}'"
    whole, parts = step_losses(invoke, tmp_path, recipe)
    assert parts == pytest.approx(whole, rel=1e-4)


def test_long_examples_are_refused_or_cut_with_numbers(invoke: Invoke, data: Path, tmp_path: Path) -> None:
    common = ("train", "--model", "embedded", "--data", data, "--prompt", "{source}\\n=>\\n", "--answer", "{target}",
              "--num-virtual-tokens", 4, "--epochs", 1, "--output", tmp_path / "out", "--max-length", 40)  # fmt: skip
    refused = invoke(*common)
    assert refused.exit_code == 1
    assert re.search(r"^error: \d+ of 40 examples have more than max_length=40 tokens, the longest", refused.stderr)
    assert not (tmp_path / "out").exists()
    cut = invoke(*common, "--truncation")
    assert cut.exit_code == 0, cut.output
    assert re.search(
        r"warning: \d+ of 40 examples have more than 40 tokens and were cut: \d+ tokens of prom", cut.stderr
    )
    lengths = json.loads((tmp_path / "out" / "metrics.json").read_text())["lengths"]
    assert lengths["prompt"]["median"] <= lengths["prompt"]["95%"] <= lengths["prompt"]["longest"]
    numbers = lengths["answer"]
    sentence = f"answer: {numbers['median']} tokens in the median, 95 % at most {numbers['95%']}, the longest"
    assert f"{sentence} {numbers['longest']}" in cut.stderr


def test_what_is_cut_also_leaves_room_for_the_prefix(invoke: Invoke, tmp_path: Path) -> None:
    model = tmp_path / "gpt2"
    from tests.cli.test_train import _save_models

    _save_models(tmp_path, {"gpt2"})  # of 32 positions
    data = tmp_path / "d.jsonl"
    data.write_text((json.dumps({"q": "a " * 40, "a": "b"}) + "\n") * 10)
    common = ("train", "--model", model, "--data", data, "--prompt", "{q}", "--answer", "{a}", "--epochs", 1,
              "--num-virtual-tokens", 4, "--output", tmp_path / "out")  # fmt: skip
    assert "need more than the 32 positions" in invoke(*common).stderr
    cut = invoke(*common, "--truncation")
    assert cut.exit_code == 0, cut.output
    assert "10 of 10 examples have more than 28 tokens" in cut.stderr


def test_a_folder_of_datasets_trains_with_its_splits(invoke: Invoke, tmp_path: Path) -> None:
    rows = draw_examples("headline", 30, seed=3)
    DatasetDict({"train": Dataset.from_list(rows[:20]), "test": Dataset.from_list(rows[20:])}).save_to_disk(
        str(tmp_path / "data")
    )
    result = invoke(
        "train", "--model", "embedded", "--data", tmp_path / "data", "--eval-split", "test", "--prompt",
        "{source}\\n=>\\n", "--answer", "{target}", "--epochs", 1, "--output", tmp_path / "o",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert (metrics["num_train_examples"], metrics["num_held_out_examples"]) == (20, 10)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data", "someone/data"], "'someone/data' is neither a file nor a dataset of the hub that can be loaded"),
        (
            ["--messages", "messages", "--prompt", "x"],
            "messages is given, so the chat template writes prompt and answer",
        ),
        (["--messages", "messages"], "the tokenizer has no chat template to write 'messages' with"),
        (
            ["--task", "music", "--prompt", "x", "--answer", "{target}"],
            "task is 'music'; it must be one of 'text', 'cl",
        ),
        (["--task", "classification", "--messages", "m"], "task is 'classification', which takes prompt and answer"),
        (["--data-split", "test"], "is a file, which has no configurations and splits"),
    ],
)
def test_bad_input_gets_one_sentence(
    invoke: Invoke, data: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    given = arguments if "--data" in arguments else ["--data", str(data), *arguments]
    if "--messages" not in given and "--prompt" not in given:
        given = [*given, "--prompt", "x", "--answer", "{target}"]
    result = invoke("train", "--model", "embedded", "--output", tmp_path / "out", *given)
    assert result.exit_code == 1, result.output
    assert re.search(f"^error: .*{sentence}", result.stderr), result.stderr
    assert result.stderr.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()
