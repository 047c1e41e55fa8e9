"""The bank: names, selections, threads, and a base model that comes back bit for bit."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    OPTConfig,
    OPTModel,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTModel,
)

import antefix
from antefix.embedded import model_path
from antefix.initialize import random_prefix
from tests.conftest import VOCAB_SIZE, build_model, draw_ids, run

NAMES = ["llama", "gpt2", "t5", "bart"]


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_each_kind_changes_what_it_should(name: str) -> None:
    model = build_model(name)
    ids, decoder_ids = draw_ids(2, 5), draw_ids(2, 4, seed=1)

    def outputs() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            made = model(input_ids=ids, decoder_input_ids=decoder_ids)
            alone = model.get_encoder()(ids).last_hidden_state
        assert torch.equal(made.encoder_last_hidden_state, alone)
        return alone, made.logits

    encoded, logits = outputs()
    bank = antefix.attach(model)
    for kind, encoder_changes in (("encoder", True), ("decoder", False), ("cross", False)):
        bank.add(kind, antefix.PrefixConfig(4, init="random", sites=(kind,)))
        with bank.use(kind):
            now_encoded, now_logits = outputs()
        assert torch.equal(now_encoded, encoded) is not encoder_changes
        assert not torch.allclose(now_logits, logits, atol=1e-2)


def test_a_text_too_long_to_read_is_refused() -> None:
    model = build_model("bart")
    bank = antefix.attach(model)
    bank.add("noise", antefix.PrefixConfig(80, init="random", sites=("cross",)))
    with pytest.raises(antefix.ContextLengthError, match=r"a text of 80 tokens, but .* has 64 positions"):
        bank.add(
            "text", antefix.PrefixConfig(80, sites=("cross",)), tokenizer=AutoTokenizer.from_pretrained(model_path())
        )


def test_names_and_selections() -> None:
    model = build_model("llama")
    bank = antefix.attach(model)
    bare = run(model)
    bank.add("a", antefix.PrefixConfig(4, init="random"))
    with_a = run(model)
    bank.add("b.c/d", random_prefix(bank.sites, 6))
    assert bank.names == ["a", "b.c/d"]
    assert torch.equal(run(model), with_a), "adding data does not activate it"
    bank.activate(["a", None])
    mixed = run(model)
    torch.testing.assert_close(mixed, torch.stack([with_a[0], bare[1]]), atol=1e-5, rtol=0)
    with bank.use(None):
        with bank.use("a"):
            assert torch.equal(run(model), with_a)
        assert torch.equal(run(model), bare)
    bank.deactivate()
    assert torch.equal(run(model), bare)
    bank.activate("a")
    bank.remove("a")
    assert bank.names == ["b.c/d"]
    assert torch.equal(run(model), bare)
    assert len(model.antefix_prefixes) == 0


def test_bad_names_and_selections_are_refused() -> None:
    model = build_model("llama")
    bank = antefix.attach(model)
    bank.add("a", antefix.PrefixConfig(4, init="random"))
    with pytest.raises(antefix.ConfigError, match="already"):
        antefix.attach(model)
    with pytest.raises(antefix.ConfigError, match="named 'a' already"):
        bank.add("a", antefix.PrefixConfig(4, init="random"))
    with pytest.raises(antefix.ConfigError, match="needs a name"):
        bank.add("", antefix.PrefixConfig(4, init="random"))
    with pytest.raises(antefix.UnknownPrefixError, match="'x' in this bank; it holds 'a'"):
        bank.activate("x")
    with pytest.raises(antefix.UnknownPrefixError), bank.use(["a", "x"]):
        pass
    with pytest.raises(antefix.ConfigError, match="3 rows, but the batch has 2"), bank.use(["a", None, "a"]):
        run(model)
    with pytest.raises(antefix.ConfigError, match="tokenizer"):
        bank.add("b", antefix.PrefixConfig(4))
    assert bank.names == ["a"]


def test_a_prefix_survives_saving_and_removal_of_its_encoder(tmp_path: Path) -> None:
    model = build_model("t5")
    bank = antefix.attach(model)
    config = antefix.PrefixConfig(4, init="random", reparameterization="mlp", encoder_hidden_size=8)
    bank.add("p", config, metadata={"data": "none"})
    expected = run(model)
    bank.save("p", tmp_path / "p.safetensors")
    bank.load(tmp_path / "p.safetensors", name="again")
    with bank.use("again"):
        torch.testing.assert_close(run(model), expected, atol=1e-6, rtol=0)
    assert bank.prefix("again").metadata["data"] == "none"
    assert bank.prefix("again").metadata["base_class"] == "T5ForConditionalGeneration"
    other = antefix.attach(build_model("bart"))
    with pytest.raises(antefix.PrefixMismatchError, match="T5ForConditionalGeneration"):
        other.load(tmp_path / "p.safetensors", name="p")


def test_a_prefix_at_some_layers_still_stands_before_the_sequence() -> None:
    # One rule: the tokens shift by P wherever the stack has the prefix at all, so all layers agree on positions.
    model = build_model("llama")
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(4, init="random", layers=(1,)))
    assert [site.layer for site in bank.prefix("p").sites] == [1]
    full = random_prefix(bank.sites, 4)
    assert not torch.allclose(run(model), run(build_model("llama")), atol=1e-3)
    bank.add("full", full)
    with bank.use(["p", "full"]):
        assert run(model).isfinite().all()


@pytest.mark.parametrize("init", ["random", "text"])
@pytest.mark.parametrize("reparameterization", [None, "mlp"])
def test_what_is_added_in_inference_mode_trains_outside_of_it(init: Any, reparameterization: Any) -> None:
    bank = antefix.attach(AutoModelForCausalLM.from_pretrained(model_path()))
    config = antefix.PrefixConfig(4, init=init, reparameterization=reparameterization, trainable_modules=["lm_head"])
    with torch.inference_mode():
        bank.add("p", config, tokenizer=AutoTokenizer.from_pretrained(model_path()))
    ids = draw_ids(2, 6)
    bank.model(input_ids=ids, labels=ids).loss.backward()
    parameters = [parameter for module in bank.modules("p") for parameter in module.parameters()]
    assert parameters
    assert all(parameter.grad is not None for parameter in parameters)


def test_layers_that_the_model_has_not_are_named() -> None:
    bank = antefix.attach(build_model("llama"))
    with pytest.raises(antefix.ConfigError, match="layers names 30, and this model's have the numbers 0 to 2"):
        bank.add("p", antefix.PrefixConfig(4, init="random", layers=(1, 30)))


def test_positions_that_do_not_suffice_are_refused_before_training() -> None:
    model = build_model("gpt2")
    bank = antefix.attach(model)
    with pytest.raises(antefix.ContextLengthError, match="64 positions"):
        bank.add("p", antefix.PrefixConfig(64, init="random"))
    bank.add("p", antefix.PrefixConfig(60, init="random"))
    assert model(draw_ids(1, 4)).logits.isfinite().all()
    with pytest.raises(antefix.ContextLengthError, match="need 65 positions"):
        model(draw_ids(1, 5))


@pytest.mark.parametrize("selection", [[], 3, {"a"}, [["a"]], [3]])
def test_what_selects_nothing_is_refused(selection: object) -> None:
    bank = antefix.attach(build_model("llama"))
    with pytest.raises(antefix.ConfigError, match="selects no prefix"):
        bank.activate(selection)
    with pytest.raises(antefix.ConfigError, match=r"files are load\(\)ed"):
        bank.add("a", "file.safetensors")
    with pytest.raises(antefix.UnknownPrefixError, match=r"no prefix named \['a'\]"):
        bank.remove(["a"])


def test_a_forward_without_inputs_is_the_bases_to_refuse() -> None:
    model = build_model("llama")
    with pytest.raises(ValueError, match="input_ids") as bare:
        model()
    bank = antefix.attach(model)
    bank.add("a", random_prefix(bank.sites, 3))
    bank.activate("a")
    with pytest.raises(ValueError, match="input_ids") as refused:
        model()
    assert str(refused.value) == str(bare.value)


def test_a_name_given_anew_is_the_new_prefix_also_behind_a_late_forward() -> None:
    bank = antefix.attach(model := build_model("llama"))
    torch.manual_seed(0)
    old, new = random_prefix(bank.sites, 3), random_prefix(bank.sites, 3)
    for name, prefix in (("a", old), ("b", new)):
        bank.add(name, prefix)
    with bank.use("b"):
        expected = run(model)
    held = bank._get("a").data
    assert held is not None
    bank.remove("a")
    bank.add("a", new)
    bank._resident.frozen("a", held)  # as a forward does that looked the name up before
    with bank.use("a"):
        assert torch.equal(run(model), expected)


def test_a_list_in_use_is_the_banks_own() -> None:
    bank = antefix.attach(model := build_model("llama"))
    for name in ("a", "b"):
        bank.add(name, random_prefix(bank.sites, 3))
    names: list[str | None] = ["a", None]
    bank.activate(names)
    before = run(model)
    names[0] = "b"
    assert torch.equal(run(model), before)
    with bank.use(names):
        other = run(model)
        names[:] = ["unknown"]
        assert torch.equal(run(model), other)
    assert not torch.equal(other, before)


def test_what_is_no_transformers_model_is_refused() -> None:
    with pytest.raises(antefix.UnsupportedModelError, match="Linear is no Transformers model"):
        antefix.attach(torch.nn.Linear(2, 2))  # type: ignore[arg-type]


def test_a_bank_shows_what_it_holds() -> None:
    bank = antefix.attach(build_model("llama"))
    assert repr(bank) == "PrefixBank(LlamaForCausalLM with 3 sites; prefixes: none)"
    bank.add("a", antefix.PrefixConfig(2, init="random"))
    assert repr(bank).endswith("prefixes: 'a')")


def test_a_vision_encoder_takes_a_prefix_without_positions() -> None:
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    model = ViTModel(ViTConfig(**size, image_size=8, patch_size=4)).eval()
    pixels = torch.randn(2, 3, 8, 8)
    bare = model(pixel_values=pixels).last_hidden_state
    bank = antefix.attach(model, example_inputs={"pixel_values": pixels})
    bank.add("p", antefix.PrefixConfig(4, init="random"))
    with bank.use(["p", None]):
        mixed = model(pixel_values=pixels).last_hidden_state
    assert not torch.allclose(mixed[0], bare[0], atol=1e-2)
    torch.testing.assert_close(mixed[1], bare[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["roberta", "opt"])
def test_bare_rows_keep_the_positions_of_their_base(name: str) -> None:
    # These two count positions without their padding, also where no position ids are given.
    size = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if name == "roberta":
        model = RobertaModel(RobertaConfig(**size, intermediate_size=48, pad_token_id=1)).eval()
    else:
        model = OPTModel(OPTConfig(**size, ffn_dim=48, word_embed_proj_dim=32)).eval()
    ids = torch.nn.functional.pad(draw_ids(2, 4), (3, 0), value=1)
    mask = (ids != 1).long()
    bare = model(ids, attention_mask=mask).last_hidden_state[:, 3:]
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(4, init="random"))
    with bank.use(["p", None]):
        mixed = model(ids, attention_mask=mask).last_hidden_state[:, 3:]
    with bank.use("p"):
        solo = model(ids[:1, 3:]).last_hidden_state
    torch.testing.assert_close(mixed[1], bare[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed[0], solo[0], atol=1e-5, rtol=0)


def test_threads_do_not_see_each_others_prefixes() -> None:
    model = build_model("llama")
    bank = antefix.attach(model)
    names = [f"p{i}" for i in range(4)]
    for i, name in enumerate(names):
        bank.add(name, random_prefix(bank.sites, 3 + i))
    expected = {}
    for name in names:
        with bank.use(name):
            expected[name] = run(model)
    wrong: list[str] = []
    barrier = threading.Barrier(len(names))

    def work(name: str) -> None:
        for _ in range(20):
            barrier.wait()
            with bank.use(name):
                if not torch.equal(run(model), expected[name]):
                    wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_tasks_do_not_see_each_others_prefixes_and_pass_their_own_on() -> None:
    bank = antefix.attach(build_model("llama"))
    for name in ("a", "b"):
        bank.add(name, random_prefix(bank.sites, 3))
    seen: dict[str, list[object]] = {"a": [], "b": []}

    async def child(name: str) -> None:
        seen[name].append(bank.selection())

    async def work(name: str, mine: asyncio.Event, other: asyncio.Event) -> None:
        with bank.use(name):
            mine.set()
            await other.wait()
            seen[name].append(bank.selection())
            await asyncio.gather(child(name))
        seen[name].append(bank.selection())

    async def both() -> None:
        events = asyncio.Event(), asyncio.Event()
        await asyncio.gather(work("a", *events), work("b", *reversed(events)))

    asyncio.run(both())
    assert seen == {"a": ["a", "a", None], "b": ["b", "b", None]}
    assert bank.selection() is None


def test_a_layer_called_outside_its_model_is_refused() -> None:
    model = build_model("llama")
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(4, init="random"))
    hidden = torch.zeros(1, 3, 32)
    position = model.model.rotary_emb(hidden, torch.arange(3)[None])
    with pytest.raises(antefix.UnsupportedModelError, match="outside a forward"):
        model.model.layers[0](hidden, position_embeddings=position)


def test_an_unknown_attention_is_refused_where_a_prefix_would_enter() -> None:
    def mine(
        module: torch.nn.Module, query: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, None]:
        return torch.zeros_like(query.transpose(1, 2)), None

    transformers.AttentionInterface.register("mine", mine)
    model = build_model("llama")
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(4, init="random"))
    model.set_attn_implementation("mine")
    with pytest.raises(antefix.UnsupportedModelError, match="cannot enter attention of implementation 'mine' yet"):
        run(model)
    with bank.use(None):
        assert run(model).isfinite().all()


def test_the_base_can_change_its_attention_after_attaching() -> None:
    model = build_model("llama", attn_implementation="sdpa")
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(4, init="random"))
    expected = run(model)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(run(model), expected, atol=1e-5, rtol=0)
    assert model(draw_ids(2, 5), output_attentions=True).attentions[0].shape == (2, 4, 5, 9)
    model.set_attn_implementation("sdpa")
    assert torch.equal(run(model), expected)
    bank.detach()
    assert model.model.layers[0].self_attn.config is model.config
