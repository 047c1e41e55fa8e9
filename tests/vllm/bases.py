"""Base models as folders that both Transformers and vLLM load, and prefixes of random numbers for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

import antefix
from antefix.embedded import model_path

VOCAB_SIZE = 512
_LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # vLLM's attention on a CPU takes multiples of 32
    "max_position_embeddings": 2048,
}
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("GPT2", {"n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 512}),
    "Qwen3": ("Qwen3", _LLAMA_LIKE),
    "Gemma 3": (
        "Gemma3",
        _LLAMA_LIKE
        | {
            "sliding_window": 160,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "query_pre_attn_scalar": 32,
        },
    ),
    "Phi-3": (
        "Phi3",
        _LLAMA_LIKE
        | {
            "num_attention_heads": 2,
            "original_max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0 + 0.1 * i for i in range(16)],
                "long_factor": [2.0 + 0.3 * i for i in range(16)],
            },
        },
    ),
    "multi-query Llama": ("Llama", _LLAMA_LIKE | {"num_key_value_heads": 1}),
    "Mistral": ("Mistral", _LLAMA_LIKE | {"sliding_window": 160}),
}


def save_base(name: str, folder: Path) -> str:
    """Return the folder of a base model; the one called Llama is the small trained one inside antefix."""
    if name == "Llama":
        return str(model_path())
    kind, settings = CONFIGURATIONS[name]
    config_class = getattr(transformers, f"{kind}TextConfig" if kind == "Gemma3" else f"{kind}Config")
    config = config_class(vocab_size=VOCAB_SIZE, pad_token_id=0, bos_token_id=1, eos_token_id=2, **settings)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # freshly initialised attention is flat, and hides mistakes
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    model.save_pretrained(folder / name)
    return str(folder / name)


def load(base: str) -> PreTrainedModel:
    """Load a base model in fp32."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    return model


def draw_prefix(bank: antefix.PrefixBank, num_virtual_tokens: int, seed: int) -> antefix.Prefix:
    """Return a prefix of random numbers, large enough to change every answer."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        site.path: (site.num_key_value_heads, num_virtual_tokens, dim) for site in bank.sites for dim in [site.key_dim]
    }
    keys, values = ({path: torch.randn(s, generator=generator) for path, s in shapes.items()} for _ in range(2))
    return antefix.Prefix(bank.sites, keys, values, {"base_model": "for a test"})


def solo_answer(bank: antefix.PrefixBank, prefix: str | None, prompt: list[int], max_tokens: int) -> list[int]:
    """Return what Transformers answers to one prompt alone, greedily."""
    ids = torch.tensor([prompt])
    with bank.use(prefix):
        answer = bank.model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_tokens,
            min_new_tokens=max_tokens,
            eos_token_id=None,
            pad_token_id=0,
        )
    return answer[0, len(prompt) :].tolist()
