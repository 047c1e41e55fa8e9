"""`antefix walkthrough` prints the shapes of the seed's walk, and those of any other configuration."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import GPT2Config, T5Config

from tests.cli.conftest import Invoke


def squeezed(table: str) -> str:
    """Return a table with its columns no wider than their text."""
    return re.sub(" +", " ", table)


def test_t5_large_is_the_walk_of_the_seed(invoke: Invoke, tmp_path: Path) -> None:
    T5Config(
        d_model=1024, d_kv=64, d_ff=4096, num_layers=24, num_heads=16, decoder_start_token_id=0
    ).save_pretrained(tmp_path)  # fmt: skip
    result = invoke("walkthrough", "--model", tmp_path)
    assert result.exit_code == 0, result.output
    for shape in (
        "(20, 49152)", "(8, 20)", "(8, 20, 49152)", "(8, 20, 48, 16, 64)", "(8, 20, 96, 16, 64)",
        "24 layers of │ (4, 8, 16, 20, 64)", "(8, 16, 2, 22)", "(8, 2, 1024)",
    ):  # fmt: skip
        assert shape in squeezed(result.stdout)


def test_gpt2_is_flat_of_18432(invoke: Invoke, tmp_path: Path) -> None:
    GPT2Config().save_pretrained(tmp_path)
    result = invoke("walkthrough", "--model", tmp_path)
    assert result.exit_code == 0, result.output
    for shape in (
        "(20, 18432)",
        "(8, 20, 24, 12, 64)",
        "12 layers of │ (2, 8, 12, 20, 64)",
        "(8, 12, 2, 22)",
        "(8, 2, 768)",
    ):
        assert shape in squeezed(result.stdout)


@pytest.mark.parametrize("arguments", [["--num-virtual-tokens", "7"], []])
def test_the_embedded_model(invoke: Invoke, arguments: list[str]) -> None:
    result = invoke("walkthrough", "--model", "embedded", *arguments)
    assert result.exit_code == 0, result.output
    assert f"({'7' if arguments else '20'}, 768)" in result.stdout


def test_an_unknown_model_gets_one_sentence(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("walkthrough", "--model", tmp_path / "none")
    assert result.exit_code == 1
    assert "cannot be loaded" in result.stderr
