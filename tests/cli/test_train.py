"""`antefix train`: real models and data, and what a user sees when something is wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

import antefix
from antefix.cli import train as cli
from antefix.embedded import model_path
from antefix.training import Recipe, train
from antefix.training.base import load_base
from antefix.training.generation import answers
from tests.cli.conftest import Invoke, command, run

FAST = ("--model", "embedded", "--prompt", "{source}\\n=>\\n", "--answer", "{target}", "--epochs", "1")


def test_writes_prefix_metrics_and_curve(invoke: Invoke, data: Path, tmp_path: Path) -> None:
    result = invoke("train", *FAST, "--data", data, "--output", tmp_path / "out", "--num-virtual-tokens", 6)
    assert result.exit_code == 0, result.output
    prefix = antefix.load_prefix(tmp_path / "out" / "prefix.safetensors")
    assert prefix.num_virtual_tokens == 6
    assert prefix.metadata["training"]["prompt"] == "{source}\n=>\n"
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(metrics["before"]) == set(metrics["after"]) == {"loss"}
    assert (metrics["num_train_examples"], metrics["num_held_out_examples"]) == (36, 4)
    assert metrics["num_trainable_parameters"] == 6 * 6 * 2 * 2 * 32
    assert [entry["step"] for entry in metrics["train_loss"]] == [1, 2, 3]
    assert metrics["tokens_per_second"] > 0
    with Image.open(tmp_path / "out" / "loss.png") as picture:
        assert picture.format == "PNG"
    for text in ("held out", "tokens/s", "loss"):
        assert text in result.output


def test_paths_are_printed_as_they_are(invoke: Invoke, data: Path, tmp_path: Path) -> None:
    """Brackets among them, which rich would read as a style."""
    result = invoke("train", *FAST, "--data", data, "--output", tmp_path / "a[/b] [bold]", "--num-virtual-tokens", 6)
    assert result.exit_code == 0, result.output
    assert f"  {tmp_path / 'a[/b] [bold]' / 'prefix.safetensors'}\n" in result.stderr
    missing = invoke("train", *FAST, "--data", tmp_path / "[red]" / "d.jsonl")
    assert f"{tmp_path / '[red]' / 'd.jsonl'}" in missing.stderr


def test_a_recipe_does_what_flags_do(invoke: Invoke, data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: embedded\ndata: {data}\nprompt: \"{{source}}\\n=>\\n\"\nanswer: '{{target}}'\nepochs: 1\n"
        f"output: {tmp_path / 'a'}\nprefix:\n  num_virtual_tokens: 6\n"
    )
    assert invoke("train", "--recipe", recipe).exit_code == 0
    flags = (*FAST, "--data", data, "--num-virtual-tokens", 6)
    assert invoke("train", *flags, "--output", tmp_path / "b").exit_code == 0
    prefixes = [antefix.load_prefix(tmp_path / name / "prefix.safetensors") for name in "ab"]
    for path in prefixes[0].keys:
        assert prefixes[0].keys[path].equal(prefixes[1].keys[path])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sites", "cross"], "no attention of this model is cross; it has 6 decoder attentions."),
        (["--num-virtual-tokens", 0], "num_virtual_tokens is 0; it must be a whole number of at least 1"),
        (["--reparameterization", "lstm"], "reparameterization is 'lstm'"),
        (["--init", "zero", "--init-text", "a"], "init_text is given, but init is 'zero'"),
    ],
)
def test_flags_of_the_prefix_reach_it(
    flags: list[object], message: str, invoke: Invoke, data: Path, tmp_path: Path
) -> None:
    result = invoke("train", *FAST, "--data", data, "--output", tmp_path / "out", *flags)
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_a_text_to_start_from_may_have_line_breaks(invoke: Invoke, data: Path, tmp_path: Path) -> None:
    flags = ("--output", tmp_path / "out", "--init-text", r"to a letter:\n")
    assert invoke("train", *FAST, "--data", data, *flags).exit_code == 0
    recipe = antefix.load_prefix(tmp_path / "out" / "prefix.safetensors").metadata["training"]
    assert recipe["prefix"]["init_text"] == "to a letter:\n"


def test_a_prefix_that_is_worse_than_none_is_announced(invoke: Invoke, data: Path, tmp_path: Path) -> None:
    warning = "warning: the prefix is worse than none; lower the learning rate, or train longer."
    for rate, epochs, is_worse in ((1e4, 1, True), (0.1, 12, False)):
        out = tmp_path / str(rate)
        flags = ("--data", data, "--output", out, "--learning-rate", rate, "--epochs", epochs)
        result = invoke("train", *FAST, *flags)
        metrics = json.loads((out / "metrics.json").read_text())
        assert (metrics["after"]["loss"] > metrics["before"]["loss"]) == is_worse
        assert (warning in " ".join(result.stderr.split())) == is_worse


@pytest.mark.parametrize("reparameterization", ["none", "mlp"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_ways_to_train(data: Path, tmp_path: Path, reparameterization: str, checkpointing: bool) -> None:
    plain = reparameterization == "none"
    recipe = Recipe.from_settings(
        {
            "model": "embedded",
            "data": str(data),
            "prompt": "{source}\n=>\n",
            "answer": "{target}",
            "epochs": 10,
            "learning_rate": 0.02 if plain else 0.005,
            "output": str(tmp_path / "out"),
            "gradient_checkpointing": checkpointing,
            "prefix": {
                "num_virtual_tokens": 6,
                "reparameterization": None if plain else "mlp",
                "encoder_hidden_size": 32,
            },
        }
    )
    losses = [entry["loss"] for entry in train(recipe).metrics["train_loss"]]
    # Prefixes that do not train keep the first losses; these fall to three quarters and less.
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def _broken(name: str, tmp_path: Path, data: Path) -> tuple[list[object], str]:
    """Return the arguments of a call that cannot work and the sentence it should end with."""
    broken, empty, long = tmp_path / "broken.jsonl", tmp_path / "empty.jsonl", tmp_path / "long.jsonl"
    first = data.read_text().splitlines()[0]
    broken.write_text(f'{first}\n{{"source": \n')
    empty.write_text("")
    long.write_text(f"{json.dumps({'source': 'a ' * 3000, 'target': 'b'})}\n" * 10)
    base: list[object] = [*FAST, "--data", data]
    files = {
        "surrogate": tmp_path / "surrogate.jsonl",
        "late": tmp_path / "late.jsonl",
        "short": tmp_path / "s.jsonl",
        "text": tmp_path / "text",
    }
    files["surrogate"].write_text('{"source": "\\ud800", "target": "b"}\n' * 10)
    files["short"].write_text('{"source": "a", "target": "b"}\n')
    files["late"].write_text(json.dumps({"source": "a " * 30, "target": "b"}))
    late = [*FAST, "--data", files["short"], "--eval-data", files["late"]]
    files["text"].write_text("mine")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("epochs: .inf\nprefix: {init_text: 5}\n")
    return {
        "unknown column": ([*base, "--prompt", "{record}"], "names the field 'record', but line 1 of .* has 'source'"),
        "empty data": ([*FAST, "--data", empty], "holds no examples"),
        "broken json": ([*FAST, "--data", broken], "line 2 of '.*broken.jsonl' is not valid JSON"),
        "missing data": ([*FAST, "--data", tmp_path / "none.jsonl"], "none.jsonl' cannot be read"),
        "too few": ([*base, "--num-examples", "5"], r"\(num_examples\) are fewer than ten"),
        "too long": ([*FAST, "--data", long], "more than max_length"),
        "no data": ([*FAST], "lacks 'data'; say it in the file or as --data"),
        "no model": ([*base, "--model", tmp_path / "no-model"], "no-model' cannot be loaded"),
        "bad init": ([*base, "--init", "ones"], "init is 'ones'"),
        "prefix too long": ([*base, "--model", tmp_path / "gpt2", "--num-virtual-tokens", "40"], "has 32 positions"),
        "prefix far too long": ([*base, "--num-virtual-tokens", "999999"], "has 1024 positions"),
        "no room": ([*base, "--model", tmp_path / "gpt2", "--num-virtual-tokens", "4"], "more than the 32 positions"),
        "no room to score": (
            [*late, "--model", tmp_path / "gpt2", "--num-virtual-tokens", "4"],
            r"the prefix \(4 tokens\).* more than the 32 positions of the decoder; shorten the example 'a a a",
        ),
        "reads both ways": ([*base, "--model", tmp_path / "bert"], "BertLMHeadModel .* reads in both directions"),
        "half a letter": ([*FAST, "--data", files["surrogate"]], "line 1 of .* holds half a surrogate pair"),
        "no braces": ([*base, "--answer", "target"], "the answer template 'target' names no field"),
        "seed": ([*base, "--seed", 2**40], f"seed is {2**40}; it must be from 0 to"),
        "endless": (
            [*base[:6], "--data", data, "--recipe", recipe, "--init-text", "a"],
            "epochs is inf; it must be a number",
        ),
        "init text": ([*base, "--recipe", recipe, "--epochs", "1"], "init_text is 5; it must be text"),
        "no tokenizer": ([*base, "--answer-tokenizer", tmp_path / "none"], "the tokenizer '.*none' cannot be loaded"),
        "cut weights": ([*base, "--model", tmp_path / "cut"], "cut' cannot be loaded: .*"),
        "a file": ([*base, "--output", files["text"]], "output is '.*text', which is a file; name a folder"),
        "bloom": ([*base, "--model", tmp_path / "bloom"], "BloomForCausalLM computes its attention itself"),
    }[name]


@pytest.mark.parametrize(
    "name",
    ["unknown column", "empty data", "broken json", "missing data", "too few", "too long", "no data", "no model",
     "bad init", "prefix too long", "bloom", "no room", "no room to score", "reads both ways", "half a letter",
     "no braces", "seed", "endless", "init text", "no tokenizer", "cut weights", "a file"],
)  # fmt: skip
def test_bad_input_gets_one_sentence_and_writes_nothing(invoke: Invoke, data: Path, tmp_path: Path, name: str) -> None:
    arguments, sentence = _broken(name, tmp_path, data)
    _save_models(tmp_path, {"bloom", "gpt2", "bert", "cut"} & {Path(str(argument)).name for argument in arguments})
    output = [] if "--output" in arguments else ["--output", tmp_path / "out"]
    result = invoke("train", *arguments, *output)
    assert result.exit_code == 1, result.output
    assert re.search(f"^error: .*{sentence}", result.stderr, re.MULTILINE), result.stderr
    assert "Traceback" not in result.output
    assert result.stderr.strip().count("\n") == 0, "one sentence is one line"
    assert not (tmp_path / "out").exists()


def _save_models(folder: Path, names: set[str]) -> None:
    """Save models that cannot be used: one of another attention, of few positions, of both directions, cut short."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_path())
    tokens = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2}
    size = {"n_layer": 1, "n_head": 4}
    bert = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    configs = {
        "bloom": transformers.BloomConfig(**tokens, **size, hidden_size=32),
        "gpt2": transformers.GPT2Config(**tokens, **size, n_embd=32, n_positions=32),
        "bert": transformers.BertConfig(**tokens, **bert),
        "cut": transformers.GPT2Config(**tokens, **size, n_embd=32),
    }
    for name in names:
        transformers.AutoModelForCausalLM.from_config(configs[name]).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    if "cut" in names:
        weights = folder / "cut" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])


def test_training_that_diverges_says_so_and_ends_without_a_result(invoke: Invoke, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = invoke("train", *FAST, "--data", data, "--output", out, "--learning-rate", 1e30)
    assert result.exit_code == 1, result.output
    assert re.search(r"^error: .*diverged.* lower (the )?learning.rate", result.stderr, re.MULTILINE)
    assert not list(out.glob("*.*"))
    for checkpoint in out.rglob("prefix.safetensors"):  # of before it diverged
        antefix.load_prefix(checkpoint)


def test_a_full_disk_is_told_in_a_sentence(
    invoke: Invoke, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch tells of it by a `RuntimeError`."""
    arguments = ("train", *FAST, "--data", data, "--output", tmp_path / "out")
    monkeypatch.setattr(cli, "train_recipe", lambda *_: torch.save(torch.zeros(9999), "/dev/full"))
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert result.stderr == "error: a checkpoint could not be written; make room on the disk, and go on by --resume.\n"
    monkeypatch.setattr(cli, "train_recipe", lambda *_: torch.zeros(2) @ torch.zeros(3))
    assert isinstance(invoke(*arguments).exception, RuntimeError), "another error keeps its traceback"


def test_control_c_keeps_the_last_checkpoint(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # A shell starts its background jobs with Ctrl-C ignored, these tests may be one, and a child would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    old = out / "checkpoint-99999" / "prefix.safetensors"  # of an earlier run, and none of this one's
    old.parent.mkdir(parents=True)
    old.write_text("")
    os.utime(old, (1, 1))
    process = subprocess.Popen(
        command("train", *FAST, "--epochs", "150", "--data", data, "--output", out, "--num-virtual-tokens", 4),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    try:
        begun, deadline = set(), time.monotonic() + 300
        while len(begun) < 2 and time.monotonic() < deadline:  # whose first one is written to its end by then
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
            begun |= set(out.glob("checkpoint-*/prefix.safetensors")) - {old}
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        signal.signal(signal.SIGINT, before)
    assert process.returncode == 130, errors
    (kept,) = re.findall(
        r"stopped: interrupted; --resume goes on from the last checkpoint, (\S+)\.$", errors, re.MULTILINE
    )
    assert antefix.load_prefix(kept).num_virtual_tokens == 4
    assert "Traceback" not in errors
    assert not (out / "metrics.json").exists()
    base_weights = [path for path in out.rglob("*") if path.is_file() and path.stat().st_size > 100_000]
    assert not base_weights, "a checkpoint holds the prefix and not the base model"


def test_a_story_model_learns_to_describe_restaurants(invoke: Invoke, shared: Path, tmp_path: Path) -> None:
    model, data = shared / "models" / "stories260K", shared / "data" / "e2e_nlg"
    out, held_out = tmp_path / "out", tmp_path / "test.jsonl"
    held_out.write_text("".join((data / "test.jsonl").read_text().splitlines(keepends=True)[::128]))
    trained = run(
        "train", "--model", model, "--data", data / "train.jsonl.gz", "--num-examples", 800, "--epochs", 1,
        "--batch-size", 8, "--eval-data", held_out, "--prompt", "{mr}\\n", "--answer", "{ref}", "--output", out,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    metrics = json.loads((out / "metrics.json").read_text())
    print(f"E2E held-out loss: base {metrics['before']['loss']:.3f}, prefix {metrics['after']['loss']:.3f}")
    assert metrics["after"]["loss"] < metrics["before"]["loss"] - 1.0
    prompt = "name[Blue Spice], eatType[coffee shop], area[city centre]\n"
    base, preprocessor = load_base(str(model))
    bank = antefix.attach(base)
    bank.load(out / "prefix.safetensors", name="e2e")
    with bank.use("e2e"):
        (expected,) = answers(base, preprocessor, [prompt], max_new_tokens=60)
    written = invoke(
        "generate", "--model", model, "--prefix", out / "prefix.safetensors", "--prompt", prompt.replace("\n", "\\n"),
        "--max-new-tokens", 60,
    )  # fmt: skip
    assert written.exit_code == 0, written.output
    assert written.stdout.strip() == expected.strip()


def test_accumulated_batches_weigh_what_one_does(shared: Path, tmp_path: Path) -> None:
    model, data = shared / "models" / "bart-g2p-us", shared / "data" / "g2p_gb"
    curves = []
    for batch_size, steps in ((8, 1), (4, 2)):
        recipe = Recipe(
            model=str(model),
            answer_tokenizer=str(model / "phonemes"),
            data=str(data / "train.jsonl"),
            num_examples=40,
            prompt="{word}",
            answer="{gb}",
            output=str(tmp_path / str(steps)),
            prefix=antefix.PrefixConfig(4, init="random"),
            batch_size=batch_size,
            gradient_accumulation_steps=steps,
            epochs=1,
        )
        curves.append([log["loss"] for log in train(recipe).metrics["train_loss"]])
    # Halves of a batch count alike, however many tokens they have; where that went wrong, losses were twice as large.
    assert curves[1] == pytest.approx(curves[0], rel=0.15)


def test_american_spelling_to_british_phonemes(shared: Path, tmp_path: Path) -> None:
    model, data = shared / "models" / "bart-g2p-us", shared / "data" / "g2p_gb"
    # The American model has no sign for a few British phonemes; such words can be neither written nor learned.
    signs = json.loads((model / "phonemes" / "tokenizer.json").read_text())["model"]["vocab"].keys()
    for name in ("train", "test"):
        lines = (data / f"{name}.jsonl").read_text().splitlines(keepends=True)
        spelled = [line for line in lines if signs >= set(json.loads(line)["gb"])]
        (tmp_path / f"{name}.jsonl").write_text("".join(spelled))
    # Cross-attention alone, because each position that a prefix takes is one that the model learned little about.
    trained = run(
        "train", "--model", model, "--answer-tokenizer", model / "phonemes", "--data", tmp_path / "train.jsonl",
        "--eval-data", tmp_path / "test.jsonl", "--prompt", "{word}", "--answer", "{gb}", "--output", tmp_path / "out",
        "--sites", "cross", "--exact-match", "--epochs", 4, "--learning-rate", 0.1, "--batch-size", 32,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert "warning" not in trained.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    before, after = metrics["before"]["exact_match"], metrics["after"]["exact_match"]
    print(f"British phonemes, exact match: base {before:.1%}, prefix {after:.1%}")
    assert after > before + 0.08
    assert metrics["after"]["loss"] < 0.6 * metrics["before"]["loss"]


def test_answers_that_the_tokenizer_cannot_spell_are_announced(invoke: Invoke, shared: Path, tmp_path: Path) -> None:
    model, data = shared / "models" / "bart-g2p-us", shared / "data" / "g2p_gb"
    trained = invoke(
        "train", "--model", model, "--answer-tokenizer", model / "phonemes", "--data", data / "train.jsonl",
        "--num-examples", 60, "--prompt", "{word}", "--answer", "{gb}", "--output", tmp_path / "out",
        "--num-virtual-tokens", 4, "--epochs", 1,
    )  # fmt: skip
    assert trained.exit_code == 0, trained.output
    assert re.search(r"warning: \d+ of 54 answers hold signs that the tokenizer does not know", trained.stderr)
