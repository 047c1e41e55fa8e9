"""Discovery finds every attention module, with its kind and dimensions, and leaves no trace."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BigBirdPegasusConfig,
    BigBirdPegasusForCausalLM,
    BigBirdPegasusForConditionalGeneration,
    Blip2Config,
    Blip2ForConditionalGeneration,
    BloomConfig,
    BloomForCausalLM,
    CanineConfig,
    CanineModel,
    ClapAudioConfig,
    ClapAudioModel,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    DogeConfig,
    DogeForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LayoutLMConfig,
    LayoutLMModel,
    PreTrainedModel,
    StableLmConfig,
    StableLmForCausalLM,
    ViTConfig,
    ViTModel,
    VoxtralRealtimeConfig,
    VoxtralRealtimeForConditionalGeneration,
)

import antefix
from antefix.sites import Site, sites_and_cut_off
from tests.conftest import VOCAB_SIZE, build_model, draw_ids

TINY = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def test_grouped_query_attention_gives_its_key_value_heads() -> None:
    assert antefix.discover_sites(build_model("llama")) == tuple(
        Site(f"model.layers.{layer}.self_attn", "decoder", layer, 2, 8, 8) for layer in range(3)
    )


def test_an_answer_may_end_in_several_ways() -> None:
    assert len(antefix.discover_sites(build_model("llama", eos_token_id=[2, 5]))) == 3


def test_encoder_decoder_has_three_kinds() -> None:
    sites = antefix.discover_sites(build_model("bart"))
    assert [(site.kind, site.layer, site.num_key_value_heads, site.key_dim) for site in sites] == [
        ("encoder", 0, 4, 8),
        ("encoder", 1, 4, 8),
        *[(kind, layer, 2, 16) for layer in range(3) for kind in ("decoder", "cross")],
    ]


SEQ2SEQ = {
    "vocab_size": VOCAB_SIZE, "pad_token_id": 0, "decoder_start_token_id": 2, "d_model": 32, "encoder_layers": 1,
    "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "max_position_embeddings": 64,
}  # fmt: skip


def test_an_encoder_decoder_is_told_by_place_and_not_by_what_its_attention_says() -> None:
    model = build_model("bart")
    expected = antefix.discover_sites(model)
    for part, says in ((model.get_encoder(), True), (model.get_decoder(), False)):
        for module in part.modules():
            if hasattr(module, "is_causal"):
                module.is_causal = module.is_decoder = says
    assert antefix.discover_sites(model) == expected


def test_an_encoder_that_no_prefix_reaches_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    config = BigBirdPegasusConfig(**SEQ2SEQ, attention_type="original_full")
    bank = antefix.attach(BigBirdPegasusForConditionalGeneration(config).eval())
    assert {site.kind for site in bank.sites} == {"decoder", "cross"}
    assert "of the encoder of BigBirdPegasusForConditionalGeneration can be reached" in caplog.messages[0]
    with pytest.raises(antefix.ConfigError, match="no attention of this model is encoder"):
        bank.add("p", antefix.PrefixConfig(4, init="random", sites=("encoder",)))


def test_the_encoder_of_a_decoder_that_is_both() -> None:
    """A model of images and text calls its whole encoder-decoder of text its decoder."""
    vision = TINY | {"intermediate_size": 48, "image_size": 8, "patch_size": 4}
    text = {
        "model_type": "t5", "vocab_size": VOCAB_SIZE, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1,
        "num_heads": 4, "decoder_start_token_id": 0,
    }  # fmt: skip
    config = Blip2Config(
        vision_config=vision, qformer_config=TINY | {"intermediate_size": 48, "encoder_hidden_size": 32},
        text_config=text, num_query_tokens=2, image_token_index=VOCAB_SIZE - 1,
    )  # fmt: skip
    model = Blip2ForConditionalGeneration(config).eval()
    assert model.get_decoder() is model.language_model
    sites = antefix.discover_sites(
        model,
        {
            "pixel_values": torch.zeros(1, 3, 8, 8),
            "input_ids": torch.cat([torch.full((1, 2), VOCAB_SIZE - 1), draw_ids(1, 3).clamp(max=60)], 1),
            "decoder_input_ids": draw_ids(1, 3),
        },
    )
    kinds = {site.path.split(".layer")[0].split(".block")[0]: site.kind for site in sites if site.kind != "cross"}
    assert kinds["vision_model.encoder"] == kinds["language_model.encoder"] == "encoder"
    assert kinds["language_model.decoder"] == "decoder"


def test_a_tower_that_hides_what_comes_later_is_no_decoder() -> None:
    """It reads a sound as it comes; a prefix stands there only where it is asked to."""
    trunk = {**TINY, "intermediate_size": 48, "num_key_value_heads": 4, "head_dim": 8, "pad_token_id": 0}
    config = VoxtralRealtimeConfig(
        audio_config={**trunk, "num_mel_bins": 8}, text_config=trunk, audio_length_per_tok=8, default_num_delay_tokens=2
    )
    model = VoxtralRealtimeForConditionalGeneration(config).eval()
    inputs = {"input_ids": draw_ids(1, 4), "input_features": torch.zeros(1, 8, 32), "num_delay_tokens": 2}
    sites = antefix.discover_sites(model, inputs)
    assert [site.kind for site in sites] == ["encoder", "encoder", "decoder", "decoder"]
    assert {site.kind for site in antefix.PrefixConfig(3, init="random").select(sites)} == {"decoder"}


def test_attention_that_says_nothing_of_later_keys_is_a_decoders_if_it_takes_a_cache() -> None:
    encoder = LayoutLMModel(LayoutLMConfig(**TINY, intermediate_size=48)).eval()
    decoder = DogeForCausalLM(DogeConfig(**TINY, intermediate_size=48, pad_token_id=0)).eval()
    for model, kind in ((encoder, "encoder"), (decoder, "decoder")):
        assert not any(hasattr(module, "is_causal") for module in model.modules())
        assert {site.kind for site in antefix.discover_sites(model)} == {kind}


def test_a_decoder_alone_whose_attention_says_that_it_is_one() -> None:
    model = BigBirdPegasusForCausalLM(BigBirdPegasusConfig(**SEQ2SEQ)).eval()
    assert {site.kind for site in antefix.discover_sites(model)} == {"decoder"}


def test_heads_times_dim_need_not_be_the_hidden_size() -> None:
    assert {(site.num_key_value_heads, site.key_dim) for site in antefix.discover_sites(build_model("t5"))} == {(4, 10)}


def test_latent_attention_has_values_of_another_dim() -> None:
    config = DeepseekV3Config(
        **TINY, intermediate_size=48, moe_intermediate_size=16, num_key_value_heads=4, n_routed_experts=4, n_group=1,
        topk_group=1, num_experts_per_tok=2, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
        v_head_dim=12, first_k_dense_replace=1, pad_token_id=0,
    )  # fmt: skip
    sites = antefix.discover_sites(DeepseekV3ForCausalLM(config).eval())
    assert {(site.kind, site.key_dim, site.value_dim) for site in sites} == {("decoder", 16, 12)}


def test_bidirectional_attention_is_an_encoder() -> None:
    model = BertForSequenceClassification(BertConfig(**TINY, intermediate_size=48)).eval()
    assert [site.kind for site in antefix.discover_sites(model)] == ["encoder", "encoder"]


@pytest.mark.parametrize(
    "model",
    [
        BloomForCausalLM(BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=32, n_layer=1, n_head=4)),
        GPTNeoForCausalLM(
            GPTNeoConfig(
                vocab_size=VOCAB_SIZE, hidden_size=32, num_layers=1, num_heads=4, attention_types=[[["global"], 1]]
            )
        ),
    ],
    ids=["bloom", "gpt-neo"],
)
def test_models_that_do_not_dispatch_are_named(model: PreTrainedModel) -> None:
    with pytest.raises(antefix.UnsupportedModelError, match=type(model).__name__):
        antefix.attach(model.eval())


def test_sites_that_no_keyword_reaches_are_known() -> None:
    model = StableLmForCausalLM(StableLmConfig(**TINY, intermediate_size=48, num_key_value_heads=2, pad_token_id=0))
    sites, cut_off = sites_and_cut_off(model.eval())
    assert cut_off == {site.path for site in sites}
    assert sites_and_cut_off(build_model("t5"))[1] == frozenset()


def test_models_without_token_ids_ask_for_an_example() -> None:
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=8, patch_size=4
    )
    model = ViTModel(config).eval()
    with pytest.raises(antefix.UnsupportedModelError, match="example_inputs"):
        antefix.discover_sites(model)
    sites = antefix.discover_sites(model, {"pixel_values": torch.zeros(1, 3, 8, 8)})
    assert [site.kind for site in sites] == ["encoder", "encoder"]


def test_what_is_called_config_need_not_be_one() -> None:
    """IDEFICS keeps a rate of dropout under that name."""
    model = build_model("llama")
    expected = antefix.discover_sites(model)
    model.model.layers[0].mlp.config = 0.1
    assert antefix.discover_sites(model) == expected
    antefix.attach(model).detach()


def test_keywords_that_a_model_hands_to_what_does_not_take_them_are_told_of() -> None:
    config = ClapAudioConfig(
        num_mel_bins=64, hidden_size=96, patch_embeds_hidden_size=24, depths=[1, 1], num_attention_heads=[2, 2],
        num_hidden_layers=2, enable_fusion=False,
    )  # fmt: skip
    model = ClapAudioModel(config).eval()
    with pytest.raises(antefix.UnsupportedModelError, match="ClapAudioModel hands what it is given to a module"):
        antefix.attach(model, {"input_features": torch.zeros(1, 1, 1001, 64)})


def test_an_example_that_hides_cross_attention_is_refused() -> None:
    ids = draw_ids(1, 3)
    with pytest.raises(antefix.UnsupportedModelError, match="two lengths"):
        antefix.attach(build_model("t5"), example_inputs={"input_ids": ids, "decoder_input_ids": ids})


def test_half_of_an_encoder_decoder_asks_for_the_whole() -> None:
    with pytest.raises(antefix.UnsupportedModelError, match=r"of T5Stack .* attach to the whole model"):
        antefix.attach(build_model("t5").decoder)


def test_attention_that_asks_for_its_name_is_refused() -> None:
    model = build_model("llama")

    class Asking(type(model.model.layers[0].self_attn)):  # type: ignore[misc]
        def forward(self, *args: object, **kwargs: object) -> object:
            if self.config._attn_implementation == "sdpa":
                kwargs["scaling_of_its_own"] = True
            return super().forward(*args, **kwargs)

    model.model.layers[1].self_attn.__class__ = Asking
    with pytest.raises(antefix.UnsupportedModelError, match="Asking behaves differently by the name"):
        antefix.attach(model)


def test_attention_that_reads_several_values_by_the_same_keys_is_refused() -> None:
    """It reads the halves of its values apart, and what PEFT trained for it has both of them, side by side."""
    config = DiffLlamaConfig(**TINY, intermediate_size=48, num_key_value_heads=2)
    with pytest.raises(antefix.UnsupportedModelError, match="DiffLlamaAttention reads several values by the same keys"):
        antefix.attach(DiffLlamaForCausalLM(config).eval())


def test_a_model_of_characters_has_no_vocabulary() -> None:
    model = CanineModel(CanineConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48))
    with pytest.raises(antefix.UnsupportedModelError, match=r"a few token ids alone .* example_inputs"):
        antefix.attach(model.eval())
    with pytest.raises(antefix.UnsupportedModelError, match=r"^CanineModel computes its attention itself"):
        antefix.attach(model, {"input_ids": draw_ids(1, 16)})


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bart"])
@pytest.mark.parametrize("training", [False, True])
def test_discovery_leaves_no_trace(name: str, training: bool) -> None:
    model = build_model(name).train(training)
    before = [(path, module.training, getattr(module, "config", None)) for path, module in model.named_modules()]
    config, random = copy.deepcopy(model.config.to_dict()), torch.get_rng_state()
    antefix.discover_sites(model)
    after = [(path, module.training, getattr(module, "config", None)) for path, module in model.named_modules()]
    assert all(a[:2] == b[:2] and a[2] is b[2] for a, b in zip(before, after, strict=True))
    assert model.config.to_dict() == config
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_discovery_does_not_see_an_attached_prefix() -> None:
    model = build_model("llama")
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(4, init="random"))
    expected = model(draw_ids(1, 3)).logits
    assert antefix.discover_sites(model) == bank.sites
    assert torch.equal(model(draw_ids(1, 3)).logits, expected)
