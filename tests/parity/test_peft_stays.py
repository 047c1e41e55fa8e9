"""An accelerated model stays PEFT's: its files, names, adapters and switches, and the way back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import antefix
from antefix.interop.peft import accelerate
from tests.parity.compare import assert_close, assert_far
from tests.parity.peft_models import MLP, PREFIX, TOLERANCE, answer, family, logits, peft, wrap


def test_peft_goes_on_to_own_its_model(tmp_path: Path) -> None:
    model = wrap(**MLP)
    before = {
        "class": type(model),
        "state": list(model.state_dict()),
        "parameters": [(name, p.requires_grad) for name, p in model.named_parameters()],
        "config": copy.deepcopy(model.peft_config),
    }
    model.save_pretrained(tmp_path / "before")
    bare = logits(model.base_model)
    bank = accelerate(model)
    expected = logits(model)
    model.save_pretrained(tmp_path / "after")
    assert before == {
        "class": type(model),
        "state": list(model.state_dict()),
        "parameters": [(name, p.requires_grad) for name, p in model.named_parameters()],
        "config": model.peft_config,
    }
    for file in (tmp_path / "before").iterdir():
        assert (tmp_path / "after" / file.name).read_bytes() == file.read_bytes()

    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.mul_(2.0)
    changed = logits(model)
    assert_far(changed, expected)
    model.load_adapter(tmp_path / "before", "saved")
    assert_close(logits(model), changed)
    model.set_adapter("saved")
    assert_close(logits(model), expected, TOLERANCE)
    with model.disable_adapter():
        assert torch.equal(logits(model), bare)
        assert torch.equal(answer(model), answer(model.base_model))
    assert_close(logits(model), expected, TOLERANCE)
    model.set_adapter("default")
    model.delete_adapter("saved")
    assert_close(logits(model), changed)
    assert bank.names == ["default"]
    assert_close(bank.prefix("default").keys[bank.sites[0].path].flatten(), model_key(model).flatten())


def model_key(model: Any) -> Tensor:
    """Return the first layer's key `(kv_head, token, head_dim)` as PEFT puts it into a cache."""
    return model.get_prompt(1).layers[0].keys[0]


def test_detaching_gives_peft_its_own_way_back() -> None:
    model = wrap()
    expected, attributes = logits(model), set(vars(model))
    bank = accelerate(model)
    with pytest.raises(antefix.ConfigError, match="has a bank already"):
        accelerate(model)
    bank.detach()
    assert set(vars(model)) == attributes
    assert torch.equal(logits(model), expected)
    with pytest.raises(AttributeError):
        answer(model, cache_implementation="static")
    accelerate(model)
    assert_close(logits(model), expected, TOLERANCE)


def test_what_cannot_be_accelerated() -> None:
    base = family("Llama").build()
    with pytest.raises(antefix.ConfigError, match=r"peft\.PeftModel, not LlamaForCausalLM"):
        accelerate(base)
    lora = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    with pytest.raises(antefix.ConfigError, match="LORA"):
        accelerate(lora)
    prompt = peft.get_peft_model(family("Llama").build(), peft.PromptTuningConfig(task_type="CAUSAL_LM", **PREFIX))
    with pytest.raises(antefix.ConfigError, match="PROMPT_TUNING"):
        accelerate(prompt)
    narrow = wrap(token_dim=8, num_attention_heads=1)
    narrow.peft_config["default"].num_layers = 3
    with pytest.raises(antefix.PrefixMismatchError, match="2 layers of attention instead of 3"):
        accelerate(narrow)
    shared = wrap()
    shared.base_model.model.layers[1].self_attn.is_kv_shared_layer = True
    with pytest.raises(antefix.UnsupportedModelError, match="share their keys"):
        accelerate(shared)
    for model in (narrow, shared):
        assert "forward" not in vars(model)
        assert not hasattr(model.base_model, "antefix_prefixes")
