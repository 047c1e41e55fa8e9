"""The model families of the parity suite: a line each, which is the configuration of a small model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

VOCAB_SIZE = 67
IMAGE, IMAGE_START, IMAGE_END = 60, 61, 62
"""Token ids that stand for an image; text is drawn below them."""

Group = Literal["decoder", "encoder", "encoder-decoder", "speech", "vision", "vision-language"]

_SPECIAL = {"vocab_size": VOCAB_SIZE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TRUNK = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL = _SPECIAL | _TRUNK
_TEXT = SMALL | {"max_position_embeddings": 160}
_GROUPED = {"num_key_value_heads": 2}
_LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
_WINDOW = {"sliding_window": 6}
_MIXED_WINDOWS = _WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}
_BART = _SPECIAL | {
    "decoder_start_token_id": 2, "forced_eos_token_id": None, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3,
    "encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "max_position_embeddings": 160,
}  # fmt: skip
_T5 = _SPECIAL | {
    "decoder_start_token_id": 0, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "dropout_rate": 0.0,
}  # fmt: skip
_GEMMA_STACK = _TEXT | _GROUPED | _WINDOW | {"head_dim": 12}
_IMAGE_TOWER = _TRUNK | {"image_size": 8, "patch_size": 4}


_NO_SDPA = {"sdpa": "the base does not support it"}
_NO_FLEX = {"flex_attention": "the base does not support it"}
_FLEX_NEEDS_GPU = {"flex_attention": "with flex attention, the base's attention sinks need a GPU"}
_FLEX_BIAS = {"flex_attention": "the base reads its bias by distance as if it had one row for each row of the batch"}
_UNPACKED = {"packed": "the base itself does not keep packed documents apart"}
_LATENT_CACHE = {"cache_route": "its cache holds latents, and keys and values cannot be turned back into them"}
_SHARED_CACHE = {"cache_route": "its last layers reuse the keys of others, and its cache holds none for them"}
_LINEAR = {
    "text_in_context": "its linear layers carry text in a state, which is not a key or a value",
    "packed": _UNPACKED["packed"],
}
_OWN_GENERATE = {
    "beams": "the base's own generate returns only the best answer",
    "sampling": "the base's own generate samples only after a greedy answer has failed",
}
_STATEFUL = {
    "prompt_lookup": "the base refuses it, because its state cannot be rolled back",
    "assisted": "the base refuses it, because its state cannot be rolled back",
}
_SHARED_LAYERS = {
    "text_in_context": "all its layers share one attention, and so one prefix, which no text produces",
    "checkpointing": "the base does not support it",
}
_CHUNKS = {
    "flex_attention": "the base's own mask does not compile for a CPU",
    "packed": "if the base reads positions, its chunks are counted from the prefix; if not, from the first token",
    "compile": "if the base reads positions, its chunks are counted from the prefix; if not, from the first token",
}


def draw_ids(batch: int, length: int, seed: int = 0) -> Tensor:
    """Draw ids of tokens that are neither special nor images."""
    return torch.randint(3, IMAGE, (batch, length), generator=torch.Generator().manual_seed(seed))


def draw_numbers(*shape: int) -> Tensor:
    """Draw the pixels of images or the features of sounds."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Family:
    """A model family: which class to build from which configuration, and what it is known not to do, and why."""

    name: str
    group: Group
    config: str
    settings: Mapping[str, Any]
    model_class: str
    gaps: Mapping[str, str] = field(default_factory=dict)
    inputs: Callable[[], dict[str, Tensor]] | None = None

    def build(self, model_class: str | None = None, scale: float = 3.0, **settings: Any) -> PreTrainedModel:
        """Build the small model in evaluation mode, always with the same weights.

        Fresh weights are so small that attention is flat; `scale` makes them larger, so that a mistake shows.
        """
        torch.manual_seed(1)
        config: PreTrainedConfig = getattr(transformers, self.config)(**self.settings)
        cls: Any = getattr(transformers, model_class or self.model_class)
        model = (cls.from_config if cls.__name__.startswith("Auto") else cls._from_config)(config, **settings)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(scale) if parameter.any() else parameter.normal_()
        return model.eval()

    def draw_inputs(self, batch: int = 2, length: int = 7, seed: int = 0) -> dict[str, Tensor]:
        """Draw what the model reads: token ids without padding, an image, or both; always 4 tokens for a decoder."""
        if self.inputs is not None:
            return self.inputs()
        inputs = {"input_ids": draw_ids(batch, length, seed)}
        if self.group == "encoder-decoder":
            inputs["decoder_input_ids"] = draw_ids(batch, 4, seed + 100)
        return inputs


def _decoder(name: str, config: str, gaps: Mapping[str, str] | None = None, /, **settings: Any) -> Family:
    return Family(name, "decoder", config, _TEXT | settings, "AutoModelForCausalLM", gaps or {})


def _encoder(name: str, config: str, gaps: Mapping[str, str] | None = None, /, **settings: Any) -> Family:
    return Family(name, "encoder", config, _TEXT | settings, "AutoModelForMaskedLM", gaps or {})


def _seq2seq(name: str, config: str, gaps: Mapping[str, str] | None = None, /, **settings: Any) -> Family:
    return Family(name, "encoder-decoder", config, settings, "AutoModelForSeq2SeqLM", gaps or {})


_DECODERS = (
    _decoder("GPT-2", "GPT2Config", _NO_FLEX),
    _decoder("OPT", "OPTConfig", _UNPACKED, ffn_dim=48, word_embed_proj_dim=32),
    _decoder("GPT-NeoX", "GPTNeoXConfig"),
    _decoder("GPT-BigCode", "GPTBigCodeConfig", _NO_FLEX, multi_query=True),
    _decoder("Phi", "PhiConfig"),
    _decoder("Phi-3", "Phi3Config", **_GROUPED),
    _decoder("StableLM", "StableLmConfig", _NO_FLEX, **_GROUPED),
    _decoder("Llama", "LlamaConfig", **_GROUPED, head_dim=12),
    _decoder("Llama 4", "Llama4TextConfig", _CHUNKS, **_GROUPED, head_dim=8, num_hidden_layers=4,
             interleave_moe_layer_step=2, intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=8),
    _decoder("Mistral", "MistralConfig", **_GROUPED, **_WINDOW),
    _decoder("Mixtral", "MixtralConfig", **_GROUPED, num_local_experts=4),
    _decoder("Qwen2", "Qwen2Config", **_GROUPED),
    _decoder("Qwen3", "Qwen3Config", **_GROUPED, head_dim=12),
    _decoder("Qwen3-MoE", "Qwen3MoeConfig", **_GROUPED, head_dim=12, num_experts=4, num_experts_per_tok=2,
             moe_intermediate_size=16),
    _decoder("Qwen3-Next", "Qwen3NextConfig", _NO_FLEX | _LINEAR | _STATEFUL, **_GROUPED, head_dim=12,
             num_experts=4, num_experts_per_tok=2, layer_types=["linear_attention", "full_attention"],
             linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
             moe_intermediate_size=16, shared_expert_intermediate_size=16),
    _decoder("Qwen3.5", "Qwen3_5TextConfig", _NO_FLEX | _LINEAR | _STATEFUL, **_GROUPED, head_dim=12,
             layer_types=["linear_attention", "full_attention"], linear_num_value_heads=4, linear_num_key_heads=2,
             linear_key_head_dim=8, linear_value_head_dim=8),
    _decoder("LFM2", "Lfm2Config", _LINEAR, **_GROUPED, layer_types=["conv", "full_attention"]),
    _decoder("Gemma", "GemmaConfig", num_key_value_heads=1, head_dim=12),
    _decoder("Gemma 2", "Gemma2Config", _NO_SDPA, **_GROUPED, **_WINDOW, head_dim=12),
    _decoder("Gemma 3", "Gemma3TextConfig", **_GROUPED, **_MIXED_WINDOWS, head_dim=12),
    _decoder("Gemma 3n", "Gemma3nTextConfig", _SHARED_CACHE, **_GROUPED, head_dim=8, num_hidden_layers=4,
             num_kv_shared_layers=2, sliding_window=6, layer_types=["sliding_attention", "full_attention"] * 2,
             hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCAB_SIZE, laurel_rank=4, altup_num_inputs=2,
             activation_sparsity_pattern=[0.0] * 4, intermediate_size=[48] * 4),
    _decoder("Gemma 4", "Gemma4TextConfig", **_GROUPED, **_MIXED_WINDOWS, head_dim=12, global_head_dim=8,
             hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCAB_SIZE),
    _decoder("gpt-oss", "GptOssConfig", _NO_SDPA | _FLEX_NEEDS_GPU | _UNPACKED, **_GROUPED, **_MIXED_WINDOWS,
             head_dim=12, num_local_experts=4, num_experts_per_tok=2),
    _decoder("DeepSeek-V2", "DeepseekV2Config", _LATENT_CACHE, **_LATENT, num_key_value_heads=4),
    _decoder("DeepSeek-V3", "DeepseekV3Config", _LATENT_CACHE, **_LATENT, num_key_value_heads=4),
    _decoder("Cohere2", "Cohere2Config", **_GROUPED, **_MIXED_WINDOWS, logit_scale=1.0),
    _decoder("OLMo2", "Olmo2Config", **_GROUPED),
    _decoder("OLMoE", "OlmoeConfig", _NO_FLEX, **_GROUPED, num_experts=4, num_experts_per_tok=2),
    _decoder("GLM-4", "Glm4Config", **_GROUPED, head_dim=8),
    _decoder("SmolLM3", "SmolLM3Config", **_GROUPED, no_rope_layers=[1, 0]),
    _decoder("Granite", "GraniteConfig", **_GROUPED),
    _decoder("Granite 4", "GraniteMoeHybridConfig", _LINEAR | _STATEFUL, **_GROUPED, layer_types=["mamba", "attention"],
             mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=8,
             num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=48),
)  # fmt: skip
_ENCODERS = (
    _encoder("BERT", "BertConfig"),
    _encoder("RoBERTa", "RobertaConfig"),
    _encoder("XLM-R", "XLMRobertaConfig"),
    _encoder("ELECTRA", "ElectraConfig", embedding_size=16),
    _encoder("ALBERT", "AlbertConfig", _SHARED_LAYERS, embedding_size=16),
    _encoder("DistilBERT", "DistilBertConfig", dim=32, hidden_dim=48, n_layers=2, n_heads=4),
    _encoder("ModernBERT", "ModernBertConfig", local_attention=6, global_attn_every_n_layers=2, num_hidden_layers=3,
             cls_token_id=1, sep_token_id=2),
)  # fmt: skip
_SEQ2SEQ = (
    _seq2seq("T5", "T5Config", _FLEX_BIAS, **_T5),
    _seq2seq("mT5", "MT5Config", _FLEX_BIAS, **_T5),
    _seq2seq("Flan-T5", "T5Config", _FLEX_BIAS,
             **_T5 | {"d_kv": 10, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    _seq2seq("T5Gemma", "T5GemmaConfig", _NO_SDPA, **_SPECIAL, encoder=_GEMMA_STACK, decoder=_GEMMA_STACK),
    _seq2seq("BART", "BartConfig", **_BART),
    _seq2seq("BART 2+4", "BartConfig", **_BART | {"decoder_layers": 4}),
    _seq2seq("mBART", "MBartConfig", **_BART),
    _seq2seq("Pegasus", "PegasusConfig", **_BART),
    _seq2seq("Marian", "MarianConfig", **_BART),
)  # fmt: skip


def _beside_image(num_image_tokens: int) -> Tensor:
    """Return token ids `(2, token)` of which some stand for an image."""
    image = torch.tensor([[IMAGE_START, *[IMAGE] * num_image_tokens, IMAGE_END]]).expand(2, -1)
    return torch.cat([draw_ids(2, 1), image, draw_ids(2, 4)], 1)


def _qwen_image() -> dict[str, Tensor]:
    ids = _beside_image(1)
    grid = torch.tensor([[1, 2, 2], [1, 2, 2]])
    return {
        "input_ids": ids,
        "pixel_values": draw_numbers(8, 96),
        "image_grid_thw": grid,
        "mm_token_type_ids": (ids == IMAGE).long(),
    }


def _gemma_image() -> dict[str, Tensor]:
    ids = _beside_image(4)
    return {"input_ids": ids, "pixel_values": draw_numbers(2, 3, 8, 8), "token_type_ids": (ids == IMAGE).long()}


def _images() -> dict[str, Tensor]:
    return {"pixel_values": draw_numbers(2, 3, 8, 8)}


def _vision(name: str, config: str, model_class: str) -> Family:
    return Family(name, "vision", config, _IMAGE_TOWER, model_class, inputs=_images)


_VISION = (
    _vision("ViT", "ViTConfig", "ViTForImageClassification"),
    _vision("CLIP vision", "CLIPVisionConfig", "CLIPVisionModel"),
    _vision("SigLIP", "SiglipVisionConfig", "SiglipVisionModel"),
    Family("DINOv3", "vision", "DINOv3ViTConfig", _IMAGE_TOWER | {"pos_embed_rescale": None}, "DINOv3ViTModel",
           inputs=_images),
    Family("Whisper", "speech", "WhisperConfig", _BART | {
        "num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 64, "suppress_tokens": None,
        "begin_suppress_tokens": None}, "WhisperForConditionalGeneration", _OWN_GENERATE,
        inputs=lambda: {"input_features": draw_numbers(2, 8, 20), "decoder_input_ids": draw_ids(2, 4)}),
)  # fmt: skip


def _qwen_vl(name: str, prefix: str, tower: Mapping[str, Any], **text: Any) -> Family:
    rotation = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    grid = {"depth": 2, "hidden_size": 32, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2}
    settings = {
        "text_config": _TEXT | _GROUPED | {"rope_parameters": rotation} | text,
        "vision_config": grid | {"temporal_patch_size": 2} | tower,
        "image_token_id": IMAGE,
        "vision_start_token_id": IMAGE_START,
        "vision_end_token_id": IMAGE_END,
        "video_token_id": 63,
    }
    model_class = f"{prefix}ForConditionalGeneration"
    return Family(name, "vision-language", f"{prefix}Config", settings, model_class, inputs=_qwen_image)


_VISION_LANGUAGE = (
    Family("LLaVA", "vision-language", "LlavaConfig", {
        "text_config": {"model_type": "llama"} | _TEXT | _GROUPED,
        "vision_config": {"model_type": "clip_vision_model"} | _IMAGE_TOWER,
        "image_token_index": IMAGE, "image_seq_length": 4}, "LlavaForConditionalGeneration",
        inputs=lambda: {"input_ids": _beside_image(4), **_images()}),
    Family("Gemma 3 multimodal", "vision-language", "Gemma3Config", {
        "text_config": _GEMMA_STACK, "vision_config": _IMAGE_TOWER,
        "mm_tokens_per_image": 4, "image_token_index": IMAGE}, "Gemma3ForConditionalGeneration", inputs=_gemma_image),
    Family("InternVL", "vision-language", "InternVLConfig", {
        "text_config": {"model_type": "qwen2"} | _TEXT | _GROUPED,
        "vision_config": _TRUNK | {"image_size": [8, 8], "patch_size": [4, 4]},
        "image_token_id": IMAGE, "image_seq_length": 1}, "InternVLForConditionalGeneration",
        inputs=lambda: {"input_ids": _beside_image(1), **_images()}),
    _qwen_vl("Qwen2-VL", "Qwen2VL", {"embed_dim": 32, "mlp_ratio": 2, "in_channels": 3}),
    _qwen_vl("Qwen2.5-VL", "Qwen2_5_VL", {
        "out_hidden_size": 32, "intermediate_size": 48, "window_size": 8, "fullatt_block_indexes": [1]}),
    _qwen_vl("Qwen3-VL", "Qwen3VL", {
        "out_hidden_size": 32, "intermediate_size": 48, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        head_dim=8),
)  # fmt: skip

FAMILIES = {family.name: family for family in (*_DECODERS, *_ENCODERS, *_SEQ2SEQ, *_VISION, *_VISION_LANGUAGE)}

REFUSED = {
    "Bloom": ("BloomForCausalLM", "BloomConfig", {}),
    "Falcon": ("FalconForCausalLM", "FalconConfig", {}),
    "GPT-J": ("GPTJForCausalLM", "GPTJConfig", {"rotary_dim": 4}),
    "MPT": ("MptForCausalLM", "MptConfig", {}),
    "GPT-Neo": ("GPTNeoForCausalLM", "GPTNeoConfig", {"attention_types": [[["global"], 2]]}),
    "Mamba": ("MambaForCausalLM", "MambaConfig", {}),
    "DeBERTa": ("DebertaV2ForMaskedLM", "DebertaV2Config", {}),
    "MPNet": ("MPNetForMaskedLM", "MPNetConfig", {}),
}
"""Models that compute their attention themselves, so that no prefix can reach it: class, configuration, settings."""
