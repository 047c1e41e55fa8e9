"""What the tests beside PEFT share: families wrapped by it, and what is asked of both."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

peft = pytest.importorskip("peft", reason="PEFT is not installed")

from tests.parity.families import FAMILIES, Family, draw_ids

TOLERANCE = 1e-5  # of the largest logit: fp32 sums in another order come to 4e-7
TOKENS = 5
PREFIX = {"num_virtual_tokens": TOKENS}
MLP = PREFIX | {"prefix_projection": True, "encoder_hidden_size": 24}
IDS = draw_ids(2, 7)
TASKS = {"decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM"}


def family(name: str) -> Family:
    """Return a family as both see it: past a sliding window, PEFT's prefix is hidden and antefix's is not."""
    found = FAMILIES[name]
    wide = {"sliding_window": 64} if "sliding_window" in found.settings else {}
    return dataclasses.replace(found, settings={**found.settings, **wide})


def wrap(name: str = "Llama", kind: str = "PrefixTuning", base: PreTrainedModel | None = None, **settings: Any) -> Any:
    """Build a family's model with an adapter of PEFT's; the same arguments give the same parameters."""
    base = base or family(name).build()
    settings = PREFIX | {"task_type": TASKS.get(FAMILIES[name].group)} | settings
    if hasattr(base.config, "decoder_attention_heads"):  # PEFT would take those of the encoder
        heads, layers = base.config.decoder_attention_heads, base.config.decoder_layers
        settings = {"num_attention_heads": heads, "num_layers": layers} | settings
    torch.manual_seed(2)
    return peft.get_peft_model(base, getattr(peft, f"{kind}Config")(**settings)).eval()


def inputs_for(model: Any) -> dict[str, Tensor]:
    inputs = {"input_ids": IDS}
    return inputs | {"decoder_input_ids": draw_ids(2, 4, seed=3)} if model.config.is_encoder_decoder else inputs


def logits(model: Any, **inputs: Any) -> Tensor:
    with torch.no_grad():
        return model(**(inputs or inputs_for(model)))[0]


def answer(model: Any, ids: Tensor = IDS, **settings: Any) -> Tensor:
    return model.generate(**({"input_ids": ids, "max_new_tokens": 8, "do_sample": False} | settings))


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def classifier(name: str, head: str, task: str) -> Any:
    model_class = f"{FAMILIES[name].model_class.removesuffix('Model').removesuffix('ForMaskedLM')}For{head}"
    return wrap(name, base=FAMILIES[name].build(model_class), task_type=task)


KINDS: dict[str, dict[str, Any]] = {
    "flat": {},
    "MLP": MLP,
    "cartridge": {"kind": "Cartridge", "num_frozen_tokens": 2},
}
NAMES = ["Llama", "GPT-2", "Qwen3", "StableLM", "Gemma", "Gemma 2", "Gemma 3", "T5", "mT5", "BART", "BART 2+4"]
CASES = [(name, "flat") for name in NAMES] + [(n, k) for n in ("Llama", "T5", "BART") for k in ("MLP", "cartridge")]
