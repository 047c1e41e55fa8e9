"""`antefix walkthrough` prints the shapes of the seed's walk, and those of any other configuration."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import DeepseekV3Config, GPT2Config, T5Config

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


def test_keys_of_another_size_than_values_have_no_view_of_a_cache(invoke: Invoke, tmp_path: Path) -> None:
    DeepseekV3Config(
        vocab_size=67, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=12,
    ).save_pretrained(tmp_path)  # fmt: skip
    result = invoke("walkthrough", "--model", tmp_path)
    assert result.exit_code == 0, result.output
    assert "key of the first site │ (4, 20, 16)" in squeezed(result.stdout)
    assert "(PEFT)" not in result.stdout
    assert "attention over prefix and sequence │ (8, 4, 2, 22)" in squeezed(result.stdout)


@pytest.mark.parametrize("arguments", [["--num-virtual-tokens", "7"], []])
def test_the_embedded_model(invoke: Invoke, arguments: list[str]) -> None:
    result = invoke("walkthrough", "--model", "embedded", *arguments)
    assert result.exit_code == 0, result.output
    assert f"({'7' if arguments else '20'}, 768)" in result.stdout


def test_an_unknown_model_gets_one_sentence(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("walkthrough", "--model", tmp_path / "none")
    assert result.exit_code == 1
    assert "cannot be loaded" in result.stderr
