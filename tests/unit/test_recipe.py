"""Recipes: YAML, overrides, and a sentence for every setting that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import antefix
from antefix.errors import ConfigError
from antefix.sites import Site
from antefix.training import Recipe
from antefix.training.systems import recipe_for

NEEDED = {"model": "embedded", "data": "d.jsonl", "prompt": "{q}", "answer": "{a}"}


def test_flags_win_over_the_file_setting_by_setting(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: embedded\ndata: d.jsonl\nprompt: '{q}'\nanswer: '{a}'\nepochs: 2\nprefix: {init: zero}\n")
    recipe = Recipe.from_yaml(path, epochs=7.0, seed=None, prefix={"num_virtual_tokens": 5, "init": None})
    assert (recipe.epochs, recipe.seed) == (7.0, 0)
    assert (recipe.prefix.num_virtual_tokens, recipe.prefix.init) == (5, "zero")
    assert Recipe.from_settings(recipe.as_dict()) == recipe


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, "no setting 'epoch'; it knows model"),
        ({"prefix": {"tokens": 3}}, "prefix has no setting 'tokens'"),
        ({"prefix": 3}, "'prefix' in a recipe must be a mapping"),
        ({"prefix": {"num_virtual_tokens": 0}}, "num_virtual_tokens is 0"),
        ({"learning_rate": 0}, "learning_rate is 0.0; it must be above 0"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; it must be a number"),
        ({"batch_size": 1.5}, "batch_size is 1.5; it must be a whole number"),
        ({"batch_size": None}, "batch_size is None"),
        ({"num_examples": 0}, "num_examples is 0"),
        ({"model": 5}, "model is 5; it must be text"),
        ({"model": ""}, "model is ''"),
        ({"epochs": 10**400}, "it must be a number"),
        ({"epochs": [1]}, r"epochs is \[1\]; it must be a number"),
        ({"exact_match": True, "task": "classification"}, "exact_match is of answers that are written"),
        ({"answer_tokenizer": "t", "task": "classification"}, "answer_tokenizer is of answers that are written"),
        ({"exact_match": "no"}, "exact_match is 'no'; it must be true or false"),
        ({"warmup_ratio": 1}, "warmup_ratio is 1.0; it must be at least 0 and below 1"),
        ({"seed": -1}, "seed is -1; it must be from 0"),
        ({"eval_data": 3}, "eval_data is 3"),
        ({"prefix": {"layers": ["a"]}}, "layers is 'a'"),
        ({"prefix": {"layers": 3}}, "layers is 3; it must be a sequence"),
        ({"prefix": {"layers": []}}, "layers is empty; name at least one"),
        ({"prefix": {"dropout": "0.1"}}, "dropout is '0.1'; it must be a number"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe.from_settings({**NEEDED, **settings})


def test_a_prefix_is_settings() -> None:
    with pytest.raises(ConfigError, match="prefix is None; it must be a PrefixConfig or a mapping"):
        Recipe(**{**NEEDED, "prefix": None})  # type: ignore[arg-type]


def test_yaml_numbers_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("learning_rate: 1e-3\nepochs: 2\nprefix: {sites: decoder}\n")
    recipe = Recipe.from_yaml(path, **NEEDED)
    assert (recipe.learning_rate, recipe.epochs, recipe.prefix.sites) == (0.001, 2.0, ("decoder",))


@pytest.mark.parametrize("name", NEEDED)
def test_what_is_missing_is_named_with_its_flag(name: str) -> None:
    with pytest.raises(ConfigError, match=f"lacks '{name}'; say it in the file or as --{name}"):
        Recipe.from_settings({key: value for key, value in NEEDED.items() if key != name})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "not valid YAML"),
        ("- a", "must be a mapping"),
        ("!!python/object:os.system {}", "not valid YAML"),
        ("name: 2024-02-30", "not valid YAML"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        Recipe.from_yaml(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        Recipe.from_yaml(tmp_path / "missing.yaml")


@pytest.mark.parametrize("wording", [{"prompt": "{a}\n", "answer": "{b}"}, {"messages": "turns"}])
def test_a_distilled_prefix_is_evaluated_by_the_wording_it_tells(wording: dict[str, str]) -> None:
    """Also beside a trained one of the same wording."""
    site, number = Site("layer", "decoder", 0, 1, 1, 1), {"layer": torch.zeros(1, 1, 1)}
    told = {"model": "embedded", "document": "d.txt", "chats": "messages" in wording, **wording}
    distilled = antefix.Prefix((site,), number, number, {"distillation": told})
    trained = Recipe.from_settings({"model": "embedded", "data": "d.jsonl", **wording}).as_dict()
    prefixes = {"d": distilled, "t": antefix.Prefix((site,), number, number, {"training": trained})}
    for given in ({"d": distilled}, prefixes):
        recipe = recipe_for("test.jsonl", given, {})
        assert {name: getattr(recipe, name) for name in wording} == wording
        assert recipe.model == "embedded"
