"""What vLLM's own application says of the model that it serves."""

from __future__ import annotations

from antefix.vllm.asgi import Scope
from antefix.windows import attention_window


class ServedModel:
    """The base model's names, the names of its LoRA adapters, and how many positions a request with a prefix may have.

    The engine has the last word on those positions, by `geometry.room_with_prefix`; here a client is told before.
    """

    def __init__(self, scope: Scope) -> None:
        state = scope["app"].state
        self.names: list[str] = [path.name for path in state.openai_serving_models.base_model_paths]
        self.taken: set[str] = {*self.names, *state.openai_serving_models.lora_requests}
        config = state.vllm_config.model_config
        window = attention_window(config.hf_text_config)
        self.room: int = min(config.max_model_len, window or config.max_model_len)
