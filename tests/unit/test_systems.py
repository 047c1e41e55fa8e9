"""Which systems are evaluated, and by what wording."""

from __future__ import annotations

from pathlib import Path

import pytest

import antefix
from antefix.errors import ConfigError
from antefix.training.systems import read_prefixes, read_texts, recipe_for, shared_labels
from tests.conftest import build_model


@pytest.fixture
def prefix() -> antefix.Prefix:
    bank = antefix.attach(build_model("llama"))
    bank.add("p", antefix.PrefixConfig(4, init="random"))
    return bank.prefix("p")


def trained(prefix: antefix.Prefix, **settings: object) -> antefix.Prefix:
    return antefix.Prefix(prefix.sites, prefix.keys, prefix.values, {"training": settings} if settings else {})


def test_prefixes_are_named(prefix: antefix.Prefix, tmp_path: Path) -> None:
    for name in ("a/prefix.safetensors", "b/prefix.safetensors", "c.safetensors", "d=e.safetensors"):
        antefix.save_prefix(prefix, tmp_path / name)
    given = [f"{tmp_path}/a/prefix.safetensors", f"mine={tmp_path}/b/prefix.safetensors", f"{tmp_path}/c.safetensors"]
    assert list(read_prefixes([*given, f"{tmp_path}/d=e.safetensors"])) == ["a", "mine", "c", "d=e"]
    for unnamed in ("mine=", f"={given[0]}", ""):
        with pytest.raises(ConfigError, match="must be FILE or NAME=FILE"):
            read_prefixes([unnamed])
    with pytest.raises(ConfigError, match="two prefixes are named 'c'; name them as NAME=FILE"):
        read_prefixes([given[2], given[2]])
    with pytest.raises(antefix.PrefixFormatError, match="there is no prefix file at 'missing'"):
        read_prefixes(["x=missing"])


def test_texts_are_given_or_read(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("Be short.\n")
    (only,) = read_texts([str(path)])
    assert (only.name, only.text, only.prefix) == ("text", "Be short.\n", None)
    assert [(s.name, s.text) for s in read_texts([r"Be short.\n", "x = 1"])] == [
        ("text 1", "Be short.\n"),
        ("text 2", "x = 1"),
    ]
    with pytest.raises(ConfigError, match=r"there is no text file 'none\.txt'"):
        read_texts(["none.txt"])
    path.write_text("Be short.\n", encoding="utf-8-sig")
    assert read_texts([str(path)])[0].text == "Be short.\n"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_texts([str(path)])


def test_a_prefix_tells_what_it_was_trained_with(prefix: antefix.Prefix) -> None:
    told = trained(prefix, model="m", prompt="{q}", answer="{a}", answer_tokenizer="t", epochs=3)
    recipe = recipe_for("d.jsonl", {"p": told, "bare": trained(prefix)}, {"task": None, "batch_size": 4})
    assert (recipe.model, recipe.prompt, recipe.answer, recipe.answer_tokenizer) == ("m", "{q}", "{a}", "t")
    assert (recipe.data, recipe.batch_size, recipe.epochs, recipe.task) == ("d.jsonl", 4, 3.0, "text")
    changed = recipe_for("d", {"p": told}, {"prompt": "Q {q}", "model": "n"})
    assert (changed.prompt, changed.answer, changed.model) == ("Q {q}", "{a}", "n")
    chats = recipe_for("d", {"p": told}, {"messages": "chat"})
    assert (chats.messages, chats.prompt) == ("chat", None)
    templates = recipe_for("d", {"p": trained(prefix, model="m", messages="c")}, {"prompt": "{q}", "answer": "{a}"})
    assert (templates.messages, templates.prompt) == (None, "{q}")


def test_prefixes_that_differ_are_asked_about(prefix: antefix.Prefix) -> None:
    both = {
        "p": trained(prefix, model="m", prompt="{q}", answer="{a}"),
        "r": trained(prefix, model="m", prompt="{x}", answer="{a}"),
    }
    with pytest.raises(ConfigError, match=r"differ in prompt: 'p' with '{q}', 'r' with '{x}'; say which as --prompt"):
        recipe_for("d", both, {})
    assert recipe_for("d", both, {"prompt": "{z}"}).prompt == "{z}"
    for missing, given in (("model", {"prompt": "x"}), ("prompt", {"model": "m"})):
        with pytest.raises(ConfigError, match=f"no prefix tells with which {missing} it was trained; give --{missing}"):
            recipe_for("d", {"p": trained(prefix)}, given)
    with pytest.raises(ConfigError, match="prompt is 5; it must be text"):
        recipe_for("d", {"p": trained(prefix, model="m", prompt=5, answer="a")}, {})


def test_labels_are_those_of_all_prefixes(prefix: antefix.Prefix) -> None:
    def choosing(labels: list[str]) -> antefix.Prefix:
        return antefix.Prefix(prefix.sites, prefix.keys, prefix.values, {"labels": labels})

    assert shared_labels({"p": trained(prefix)}) is None
    assert shared_labels({"p": choosing(["a", "b"]), "q": trained(prefix)}) == ["a", "b"]
    with pytest.raises(ConfigError, match="choose from different labels"):
        shared_labels({"p": choosing(["a", "b"]), "q": choosing(["b", "a"])})
