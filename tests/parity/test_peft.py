"""Real PEFT and antefix compute the same: from PEFT's checkpoints, from checkpoints for PEFT, and on PEFT's models.

Where PEFT cannot, a test first sees it fail, so that it tells when PEFT is repaired; what is right then comes from PEFT
on a way that works, such as greedy decoding with its usual cache.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

peft = pytest.importorskip("peft", reason="PEFT is not installed")

import antefix
from antefix.initialize import random_prefix
from antefix.interop.peft import accelerate, read, write
from tests.parity.compare import assert_close, assert_far
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


KINDS: dict[str, dict[str, Any]] = {
    "flat": {},
    "MLP": MLP,
    "cartridge": {"kind": "Cartridge", "num_frozen_tokens": 2},
}
NAMES = ["Llama", "GPT-2", "Qwen3", "StableLM", "Gemma", "Gemma 2", "Gemma 3", "T5", "mT5", "BART", "BART 2+4"]
CASES = [(name, "flat") for name in NAMES] + [(n, k) for n in ("Llama", "T5", "BART") for k in ("MLP", "cartridge")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_checkpoint_of_peft_computes_the_same_in_antefix(name: str, kind: str, tmp_path: Path) -> None:
    model = wrap(name, **KINDS[kind])
    model.save_pretrained(tmp_path)
    base = family(name).build()
    bank = antefix.attach(base)
    bank.load(tmp_path, "p")
    bare = logits(base)
    bank.activate("p")
    assert_close(logits(base), logits(model), TOLERANCE)
    assert_far(logits(base), bare)
    assert torch.equal(answer(base), answer(model))
    assert bank.prefix("p").num_virtual_tokens == TOKENS


@pytest.mark.parametrize("name", NAMES)
def test_a_prefix_written_for_peft_computes_the_same_there(name: str, tmp_path: Path) -> None:
    """Every layer has numbers of its own, also in an encoder-decoder of an even number of layers."""
    base = family(name).build()
    bank = antefix.attach(base)
    bank.add("p", random_prefix([site for site in bank.sites if site.kind == "decoder"], TOKENS))
    bank.activate("p")
    write(bank.prefix("p"), tmp_path, base, bank.sites)
    model = peft.PeftModel.from_pretrained(family(name).build(), tmp_path)
    assert_close(logits(model), logits(base), TOLERANCE)
    assert torch.equal(answer(model), answer(base))
    assert torch.equal(answer(model, num_beams=2), answer(base, num_beams=2))


def test_a_checkpoint_survives_antefix_byte_by_byte(tmp_path: Path) -> None:
    wrap().save_pretrained(tmp_path / "theirs")
    base = family("Llama").build()
    write(read(tmp_path / "theirs", base), tmp_path / "ours", base)
    theirs, ours = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("theirs", "ours"))
    assert ours == theirs


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_an_accelerated_model_computes_and_learns_the_same(name: str, kind: str) -> None:
    model = wrap(name, **KINDS[kind]).train()
    mask = torch.ones_like(IDS)
    mask[0, 5:] = 0
    labels = inputs_for(model).get("decoder_input_ids", IDS.masked_fill(mask == 0, -100))
    batch = {"input_ids": IDS, "attention_mask": mask, "labels": labels}
    expected = logits(model.eval()), answer(model), model(**batch).loss
    expected[2].backward()
    gradient = gradients(model)
    model.zero_grad()

    bank = accelerate(model)
    loss = model(**batch).loss
    loss.backward()
    assert_close(logits(model), expected[0], TOLERANCE)
    assert torch.equal(answer(model), expected[1])
    assert_close(loss, expected[2], TOLERANCE)
    actual = gradients(model)
    assert actual.keys() == gradient.keys()
    assert len(actual) == {"flat": 1, "MLP": 5, "cartridge": 1}[kind]
    for parameter, value in gradient.items():
        assert_close(actual[parameter], value, 1e-4)  # sums over all tokens and layers
    assert bank.names == ["default"]


def test_training_takes_the_same_steps() -> None:
    def steps(model: Any) -> list[float]:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
        losses = []
        for seed in range(6):
            ids = draw_ids(2, 7, seed)
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    theirs, ours = wrap(**MLP), wrap(**MLP)
    accelerate(ours)
    assert steps(ours.train()) == pytest.approx(steps(theirs.train()), rel=1e-4)
    assert_close(logits(ours.eval()), logits(theirs.eval()), 1e-3)


def test_gradient_checkpointing() -> None:
    model = wrap(**MLP).train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    plain = gradients(model)
    model.zero_grad()
    model.activation_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(RuntimeError):
        model(input_ids=IDS, labels=IDS)

    accelerate(model)
    model(input_ids=IDS, labels=IDS).loss.backward()
    actual = gradients(model)
    assert actual.keys() == plain.keys()
    for name, gradient in plain.items():
        assert_close(actual[name], gradient, 1e-4)


def assistant() -> PreTrainedModel:
    return FAMILIES["Llama"].build(scale=2.0)


MODES: dict[str, Callable[[], dict[str, Any]]] = {
    "static cache": lambda: {"cache_implementation": "static"},
    "no cache": lambda: {"use_cache": False},
    "prompt lookup": lambda: {"prompt_lookup_num_tokens": 3, "ids": IDS[:1]},
    "assisted": lambda: {"assistant_model": assistant(), "ids": IDS[:1]},
}


@pytest.mark.parametrize("mode", MODES)
def test_ways_to_generate(mode: str) -> None:
    model = wrap()
    settings = MODES[mode]()
    expected = answer(model)[: settings.get("ids", IDS).shape[0]]
    with pytest.raises((RuntimeError, AttributeError, ValueError)):
        answer(model, **settings)
    accelerate(model)
    assert torch.equal(answer(model, **settings), expected)


def test_a_cache_goes_on_across_turns() -> None:
    model = wrap()
    first = answer(model)
    whole = torch.cat([first, draw_ids(2, 3, seed=5)], dim=1)
    expected = answer(model, whole)
    turn = answer(model, past_key_values=DynamicCache(), return_dict_in_generate=True)
    with pytest.raises(RuntimeError):
        answer(model, whole, past_key_values=turn.past_key_values)

    accelerate(model)
    turn = answer(model, past_key_values=DynamicCache(), return_dict_in_generate=True)
    assert torch.equal(turn.sequences, first)
    assert torch.equal(answer(model, whole, past_key_values=turn.past_key_values), expected)


def test_each_row_has_its_adapter() -> None:
    model = wrap()
    model.add_adapter("long", peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=9))
    names = ["long", "__base__", "default"]
    ids = draw_ids(3, 7, seed=4)
    expected, answers = [], []
    for row, name in enumerate(names):
        model.set_adapter("default" if name == "__base__" else name)
        alone = model.base_model if name == "__base__" else model
        expected.append(logits(alone, input_ids=ids[row : row + 1]))
        answers.append(answer(alone, ids[row : row + 1], num_beams=2, num_return_sequences=2, min_new_tokens=8))
    assert_close(logits(model, input_ids=ids, adapter_names=names), logits(model, input_ids=ids))  # ignored
    with pytest.raises(ValueError, match="adapter_names"):
        answer(model, ids, adapter_names=names)

    accelerate(model)
    assert_close(logits(model, input_ids=ids, adapter_names=names), torch.cat(expected), TOLERANCE)
    together = answer(
        model, ids, adapter_names=names, num_beams=2, num_return_sequences=2, min_new_tokens=8
    )  # six rows of the same length
    assert torch.equal(together, torch.cat(answers))
    with pytest.raises(antefix.UnknownPrefixError, match="'short'"):
        answer(model, ids, adapter_names=["short"] * 3)


CLASSIFIERS = [("BERT", "SequenceClassification", "SEQ_CLS"), ("BERT", "TokenClassification", "TOKEN_CLS")]


def classifier(name: str, head: str, task: str) -> Any:
    model_class = f"{FAMILIES[name].model_class.removesuffix('Model').removesuffix('ForMaskedLM')}For{head}"
    return wrap(name, base=FAMILIES[name].build(model_class), task_type=task)


@pytest.mark.parametrize(("name", "head", "task"), CLASSIFIERS)
def test_classifiers_with_heads(name: str, head: str, task: str, tmp_path: Path) -> None:
    """PEFT trains a copy of the head, which goes with the checkpoint into antefix and back."""
    model = classifier(name, head, task)
    with torch.no_grad():
        model.base_model.classifier.modules_to_save["default"].weight.normal_()
    labels = torch.tensor([0, 1]) if task == "SEQ_CLS" else IDS % 2
    outputs = model(input_ids=IDS, labels=labels)
    outputs.loss.backward()
    gradient = gradients(model)
    model.zero_grad()

    accelerate(model)
    accelerated = model(input_ids=IDS, labels=labels)
    accelerated.loss.backward()
    assert_close(accelerated.logits, outputs.logits, TOLERANCE)
    assert_close(accelerated.loss, outputs.loss, TOLERANCE)
    assert gradients(model).keys() == gradient.keys()
    assert any("classifier" in parameter for parameter in gradient)
    for parameter, value in gradient.items():
        assert_close(gradients(model)[parameter], value, 1e-4)

    model.save_pretrained(tmp_path / "theirs")
    base = FAMILIES[name].build(type(model.base_model).__name__)
    bank = antefix.attach(base)
    bank.load(tmp_path / "theirs", "p")
    bank.activate("p")
    assert_close(logits(base), outputs.logits, TOLERANCE)
    write(bank.prefix("p"), tmp_path / "ours", base, bank.sites)
    back = peft.PeftModel.from_pretrained(FAMILIES[name].build(type(base).__name__), tmp_path / "ours")
    assert_close(logits(back), outputs.logits, TOLERANCE)


def test_each_row_has_the_head_of_its_adapter() -> None:
    model = classifier(*CLASSIFIERS[0])
    model.add_adapter("other", peft.PrefixTuningConfig(task_type="SEQ_CLS", **PREFIX))
    with torch.no_grad():
        model.base_model.classifier.modules_to_save["other"].weight.normal_()
    accelerate(model)
    alone = []
    for row, name in enumerate(["default", "other"]):
        model.set_adapter(name)
        alone.append(logits(model, input_ids=IDS[row : row + 1]))
    model.set_adapter("default")
    together = logits(model, input_ids=IDS, adapter_names=["default", "other"])
    assert_close(together, torch.cat(alone), TOLERANCE)
    assert_far(together[1], logits(model)[1])


def test_an_encoder_that_takes_no_cache(tmp_path: Path) -> None:
    model = classifier("ModernBERT", "SequenceClassification", "SEQ_CLS")
    with pytest.raises(ValueError, match="does not support past key values"):
        model(input_ids=IDS)
    accelerate(model)
    model(input_ids=IDS, labels=torch.tensor([0, 1])).loss.backward()
    assert gradients(model)["prompt_encoder.default.embedding.weight"].abs().max() > 0
    model.save_pretrained(tmp_path)
    base = FAMILIES["ModernBERT"].build("ModernBertForSequenceClassification")
    bank = antefix.attach(base)
    bare = logits(base)
    bank.load(tmp_path, "p")
    bank.activate("p")
    assert_close(logits(model), logits(base), TOLERANCE)
    assert_far(logits(model), bare)


def test_positions_are_those_of_tokens_behind_the_prefix() -> None:
    """PEFT counts padding as tokens unless it is given positions; in antefix a row answers as it does alone."""
    model = wrap()
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    alone = logits(model, input_ids=IDS[:1, 3:])
    assert_far(logits(model, input_ids=IDS, attention_mask=mask)[:1, 3:], alone)
    given = logits(model, input_ids=IDS, attention_mask=mask, position_ids=positions)
    elsewhere = logits(model, input_ids=IDS, position_ids=positions + 3)
    accelerate(model)
    padded = logits(model, input_ids=IDS, attention_mask=mask)
    assert_close(padded[:1, 3:], alone, TOLERANCE)
    assert_close(padded[1], given[1], TOLERANCE)
    with_positions = logits(model, input_ids=IDS, attention_mask=mask, position_ids=positions)
    assert_close(with_positions[:1, 3:], given[:1, 3:], TOLERANCE)
    assert_close(logits(model, input_ids=IDS, position_ids=positions + 3), elsewhere, TOLERANCE)


def test_arguments_are_read_as_peft_reads_them() -> None:
    model = wrap("GPT-2")
    mask = torch.ones_like(IDS)
    embedded = model.get_input_embeddings()(IDS).detach()
    with torch.no_grad(), pytest.warns(UserWarning, match="[Tt]oken"):
        expected = model(None, mask, embedded, IDS, token_type_ids=mask, task_ids=None)
    accelerate(model)
    with torch.no_grad(), pytest.warns(UserWarning, match="token_type_ids"):
        actual = model(None, mask, embedded, IDS, token_type_ids=mask, task_ids=None)
    assert_close(actual.logits, expected.logits, TOLERANCE)
    assert_close(actual.loss, expected.loss, TOLERANCE)
    model.generation_config = copy.deepcopy(model.generation_config)
    model.generation_config.max_new_tokens = 2
    assert model.generate(input_ids=IDS).shape[1] == IDS.shape[1] + 2


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


def test_without_a_task_peft_leaves_the_prefix_out() -> None:
    model = peft.PeftModel(family("Llama").build(), peft.PrefixTuningConfig(**PREFIX)).eval()
    ids = draw_ids(2, 5)
    assert torch.equal(logits(model, input_ids=ids), logits(model.base_model, input_ids=ids))
    accelerate(model)
    with torch.no_grad():
        named, placed = model(input_ids=ids).logits, model(ids).logits
    assert_far(named, logits(model.base_model, input_ids=ids))
    assert torch.equal(named, placed)


def test_the_bare_model_of_peft_alone() -> None:
    """A base without a head is itself the stack; PEFT's disable_adapter would go past what watches it."""
    base = FAMILIES["BERT"].build("BertModel")
    model = wrap("BERT", base=base, task_type="FEATURE_EXTRACTION")
    expected, bare = logits(model), logits(base)
    accelerate(model)
    assert_close(logits(model), expected, TOLERANCE)
    with model.disable_adapter():
        assert torch.equal(logits(model), bare)


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
    assert "forward" not in vars(narrow)
    assert not hasattr(narrow.base_model, "antefix_prefixes")
