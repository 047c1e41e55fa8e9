"""How many positions the front end gives a request with a prefix, for configurations of real families."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import Gemma3TextConfig, Llama4TextConfig, LlamaConfig, MistralConfig, Qwen2Config

from antefix.vllm.served import ServedModel


@pytest.mark.parametrize(
    ("config", "room"),
    [
        (LlamaConfig(), 2048),
        (MistralConfig(sliding_window=512), 512),
        (MistralConfig(sliding_window=None), 2048),
        (MistralConfig(sliding_window=4096), 2048),
        (Gemma3TextConfig(sliding_window=512), 512),
        (Llama4TextConfig(attention_chunk_size=512), 512),
        (Llama4TextConfig(attention_chunk_size=512, layer_types=["full_attention"] * 48), 2048),
        (Qwen2Config(use_sliding_window=False, sliding_window=512), 2048),
        (Qwen2Config(use_sliding_window=True, sliding_window=512, max_window_layers=2), 512),
    ],
    ids=[
        "Llama",
        "Mistral",
        "Mistral without",
        "Mistral, wide",
        "Gemma 3",
        "Llama 4",
        "Llama 4 whole",
        "Qwen2 without",
        "Qwen2",
    ],
)
def test_the_room_is_the_smallest_window(config: Any, room: int) -> None:
    model_config = SimpleNamespace(hf_text_config=config, max_model_len=2048)
    models = SimpleNamespace(base_model_paths=[SimpleNamespace(name="base")], lora_requests={"an adapter": 1})
    state = SimpleNamespace(vllm_config=SimpleNamespace(model_config=model_config), openai_serving_models=models)
    served = ServedModel({"app": SimpleNamespace(state=state)})
    assert (served.room, served.names, served.taken) == (room, ["base"], {"base", "an adapter"})
