"""`antefix inspect`: of files alone, and held against what `antefix evaluate` measures of the same prefixes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import antefix
from antefix.embedded.records import draw_examples, prompt
from antefix.inspect.ablation import without_each_layer
from antefix.training.base import load_base
from tests.cli.conftest import Invoke, run
from tests.unit.test_classification import save

HEADER = "style: headline\n"


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a prefix that is the keys and values of a header, so that no training is needed to have one that matters."""
    model, preprocessor = load_base("embedded")
    bank = antefix.attach(model)
    config = antefix.PrefixConfig(len(preprocessor.prompt_ids(HEADER)), init_text=HEADER)
    recipe = {
        "model": "embedded", "prompt": prompt("{source}"), "answer": "{target}",
        "prefix": {"num_virtual_tokens": config.num_virtual_tokens, "init_text": HEADER},
    }  # fmt: skip
    bank.add("headline", config, tokenizer=preprocessor.tokenizer, metadata={"training": recipe})
    path = tmp_path_factory.mktemp("prefixes") / "headline.safetensors"
    bank.save("headline", path)
    return path


def loss(invoke: Invoke, data: Path, prefix: Path, folder: Path) -> float:
    result = invoke("evaluate", "--data", data, "--prefix", f"p={prefix}", "--output", folder)
    assert result.exit_code == 0, result.output
    found: float = json.loads((folder / "evaluation.json").read_text())["systems"]["p"]["loss"]
    return found


def test_what_a_file_holds(invoke: Invoke, prefix: Path) -> None:
    result = invoke("inspect", prefix)
    assert result.exit_code == 0, result.output
    held = antefix.load_prefix(prefix)
    for told in (held.content_hash(), held.metadata["fingerprint"], "6 decoder", f"{held.num_virtual_tokens}"):
        assert told in result.output
    assert invoke("inspect", prefix, "--prompt", "x").exit_code == 1


def test_a_file_is_verified(invoke: Invoke, prefix: Path, tmp_path: Path) -> None:
    result = invoke("inspect", prefix, "--verify")
    assert (result.exit_code, "headline: intact" in result.output) == (0, True)
    changed, damaged = tmp_path / "changed.safetensors", tmp_path / "damaged.safetensors"
    whole = prefix.read_bytes()
    changed.write_bytes(whole[:-4] + bytes([whole[-4] ^ 1]) + whole[-3:])
    antefix.load_prefix(changed)  # one bit of one number: it is a whole prefix still, but another one
    refused = invoke("inspect", changed, "--verify")
    assert (refused.exit_code, "holds other numbers than it was saved with" in refused.stderr) == (1, True)
    damaged.write_bytes(prefix.read_bytes()[:-1])
    refused = invoke("inspect", prefix, damaged, "--verify")
    assert refused.exit_code == 1
    assert f"error: '{damaged}' is not an intact safetensors file" in refused.stderr.replace("\n", " ")


def test_losses_are_those_of_an_evaluation(invoke: Invoke, prefix: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    result = invoke("inspect", prefix, "--data", data, "--output", out, "--batch-size", 7)
    assert result.exit_code == 0, result.output
    found = json.loads((out / "inspection.json").read_text())["on_data"]["headline"]
    assert found["num_examples"] == 40
    assert found["losses"]["prefix"] == pytest.approx(loss(invoke, data, prefix, tmp_path / "whole"), abs=1e-6)
    parts = without_each_layer(antefix.load_prefix(prefix))
    assert list(parts) == [f"decoder {layer}" for layer in range(6)]
    for name in ("decoder 0", "decoder 3"):
        path = tmp_path / f"{name}.safetensors"
        antefix.save_prefix(parts[name], path)
        expected = loss(invoke, data, path, tmp_path / name)
        assert found["losses"][f"without {name}"] == pytest.approx(expected, abs=1e-6)
    assert found["losses"]["bare base"] > found["losses"]["prefix"]
    assert max(found["drift"]["keys"] + found["drift"]["values"]) < 1e-5, "it is as it started"
    shares = found["attention"]["model.layers.0.self_attn"]
    assert all(0 < sum(head) < 1 for head in shares)
    pictures = {path.name for path in out.glob("*.png")}
    assert pictures == {f"headline-{what}.png" for what in ("keys", "values", "attention", "tokens")}


@pytest.mark.parametrize("kind", ["BertModel", "BartForConditionalGeneration"])
def test_every_kind_of_model_and_task(kind: str, invoke: Invoke, tmp_path: Path) -> None:
    """A classifier and an encoder-decoder, with prefixes that `antefix train` made."""
    rows = draw_examples("headline", 24, seed=1)
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    data.write_text("".join(json.dumps({**row, "label": str(n % 2)}) + "\n" for n, row in enumerate(rows)))
    how = ("--answer", "{target}") if "Bart" in kind else ("--task", "classification", "--answer", "{label}")
    trained = invoke(
        "train", "--data", data, "--prompt", "{source}", "--num-virtual-tokens", 4, "--epochs", 1, "--output", out,
        "--model", save(tmp_path / "model", kind), *how,
    )  # fmt: skip
    assert trained.exit_code == 0, trained.output
    result = invoke("inspect", out / "prefix.safetensors", "--data", data, "--output", tmp_path / "report")
    assert result.exit_code == 0, result.output
    (found,) = json.loads((tmp_path / "report" / "inspection.json").read_text())["on_data"].values()
    kinds = {site.kind for site in antefix.load_prefix(out / "prefix.safetensors").sites}
    assert kinds == ({"encoder"} if kind == "BertModel" else {"encoder", "decoder", "cross"})
    assert all(sum(head) > 0 for shares in found["attention"].values() for head in shares)
    evaluated = invoke("evaluate", "--prefix", out / "prefix.safetensors", "--data", data, "--output", tmp_path / "all")
    assert evaluated.exit_code == 0, evaluated.output
    systems = json.loads((tmp_path / "all" / "evaluation.json").read_text())["systems"]
    told = {name: figures["loss"] for name, figures in systems.items()}
    expected = {"base": found["losses"]["bare base"], "out": found["losses"]["prefix"]}
    assert told == pytest.approx(expected, abs=1e-6), "a head that the checkpoint has not is drawn alike"


def test_prefixes_are_compared(invoke: Invoke, prefix: Path, tmp_path: Path) -> None:
    result = invoke("inspect", f"a={prefix}", f"$x_$={prefix}", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "inspection.json").read_text())
    assert found["similarity"]["a"]["$x_$"] == pytest.approx(1.0)
    assert (tmp_path / "similarity.png").is_file()


@pytest.mark.parametrize(
    ("name", "message"),
    [("../out", "names no file"), ("a/b", "names no file"), ("", "NAME=FILE"), ("x" * 220, "names no file")],
)
def test_a_name_is_no_way_out_of_the_folder(
    name: str, message: str, invoke: Invoke, prefix: Path, tmp_path: Path
) -> None:
    result = invoke("inspect", f"{name}={prefix}", "--output", tmp_path / "report")
    assert result.exit_code == 1
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_encoding_that_lacks_a_sign_gets_one_sentence(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where Windows, or a locale that is not UTF-8, pipes the output."""
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    result = run("inspect", f"h\u02c8O={prefix}", "--verify")
    assert result.returncode == 1
    assert "set PYTHONIOENCODING=utf-8" in result.stderr
    assert "Traceback" not in result.stderr


def test_settings_that_would_do_nothing_are_refused(invoke: Invoke, prefix: Path) -> None:
    for settings in (["--data", "nowhere.jsonl"], ["--output", "folder"], ["--task", "text"]):
        result = invoke("inspect", prefix, "--verify", *settings)
        assert result.exit_code == 1
        assert "--verify reads the files and does nothing else" in result.stderr
