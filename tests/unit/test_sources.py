"""Bases that cannot be loaded, each for a reason of its own, are named in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from antefix.errors import ConfigError
from antefix.training.base import load_base


@pytest.fixture
def base(tmp_path: Path) -> Path:
    model, encoder = load_base("embedded")
    model.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}),
        ("config.json", {"intermediate_size": 24}),
        ("tokenizer_config.json", None),
        ("generation_config.json", None),
        ("config.json", {"num_attention_heads": 0}),
    ],
    ids=["a library is missing", "other sizes", "no settings of a tokenizer", "no settings of generation", "no heads"],
)
def test_what_cannot_be_loaded_is_named(base: Path, file: str, changes: dict[str, object] | None) -> None:
    """`None` puts a list where there are settings."""
    content = [] if changes is None else {**json.loads((base / file).read_text()), **changes}
    (base / file).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=f"'{base}' cannot be loaded: .") as caught:
        load_base(str(base))
    assert "\n" not in str(caught.value)


def test_a_failure_without_words_is_named_by_its_kind(base: Path) -> None:
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").touch()
    with pytest.raises(ConfigError, match=f"the model '{base}' cannot be loaded: EOFError"):
        load_base(str(base))
