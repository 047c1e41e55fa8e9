"""A prefix beside a LoRA adapter of PEFT, whichever came first: computed, trained and saved together or apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PrinterCallback,
    TrainingArguments,
    default_data_collator,
)

import antefix
from antefix.initialize import random_prefix
from antefix.prefix import geometry_fingerprint
from antefix.training import PrefixTrainer
from tests.conftest import build_model, draw_ids

peft = pytest.importorskip("peft", reason='PEFT is not installed: pip install "antefix[peft]"')

IDS = draw_ids(3, 7)
EXAMPLES = [{"input_ids": row, "labels": row} for row in draw_ids(16, 7).tolist()]


def adapted(model: PreTrainedModel) -> Any:
    """Return the model with LoRA layers that already do something."""
    torch.manual_seed(2)
    return peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=False)
    )


def prefix_first() -> tuple[Any, antefix.PrefixBank]:
    model = build_model("llama")
    bank = antefix.attach(model)
    torch.manual_seed(0)
    bank.add("p", antefix.PrefixConfig(5, init="random"))
    return adapted(model), bank


def adapter_first() -> tuple[Any, antefix.PrefixBank]:
    model = adapted(build_model("llama"))
    bank = antefix.attach(model)
    torch.manual_seed(0)
    bank.add("p", antefix.PrefixConfig(5, init="random"), freeze_base=False)
    return model, bank


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("order", [prefix_first, adapter_first])
def test_together_they_are_the_prefix_on_merged_weights(order: Any) -> None:
    model, bank = order()
    merged = adapted(build_model("llama")).merge_and_unload()
    reference = antefix.attach(merged)
    reference.add("p", bank.prefix("p"))
    with reference.use("p"):
        expected = logits(merged)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)  # LoRA adds in another order than merged
    for other in (bank.use(None), model.disable_adapter()):
        with other:
            assert (logits(model) - expected).abs().max() > 0.1


@pytest.mark.parametrize("order", [prefix_first, adapter_first])
def test_sites_are_those_of_the_bare_base(order: Any) -> None:
    model, bank = order()
    assert bank.sites == antefix.discover_sites(build_model("llama"))
    assert geometry_fingerprint(bank.sites) == bank.prefix("p").metadata["fingerprint"]
    bare = antefix.attach(build_model("llama"))
    bare.add("p", bank.prefix("p"))
    with bare.use("p"), model.disable_adapter():
        torch.testing.assert_close(logits(bare.model), logits(model), atol=1e-6, rtol=0)


def trained(model: Any, bank: antefix.PrefixBank, folder: Path) -> PrefixTrainer:
    trainer = PrefixTrainer(
        bank,
        "p",
        model=model,
        args=TrainingArguments(
            output_dir=str(folder), max_steps=4, save_steps=2, per_device_train_batch_size=4, learning_rate=0.05,
            logging_steps=1, report_to="none", disable_tqdm=True, use_cpu=True, remove_unused_columns=False,
        ),
        train_dataset=EXAMPLES,
        data_collator=default_data_collator,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


@pytest.mark.parametrize("order", [prefix_first, adapter_first])
def test_they_train_together_and_are_saved_apart(order: Any, tmp_path: Path) -> None:
    model, bank = order()
    before = {name: p.detach().clone() for name, p in bank.model.named_parameters()}
    trainer = trained(model, bank, tmp_path)
    changed = {name for name, p in bank.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "lora_" in name or name.startswith("antefix_prefixes.")}

    trainer.save_model(str(tmp_path / "final"))
    assert {path.name for path in (tmp_path / "final").iterdir()} >= {"prefix.safetensors", "adapter_model.safetensors"}
    assert all("lora_" in name for name in load_file(tmp_path / "final" / "adapter_model.safetensors"))
    again = peft.PeftModel.from_pretrained(build_model("llama"), tmp_path / "final")
    loaded = antefix.attach(again)
    loaded.load(tmp_path / "final" / "prefix.safetensors", "p")
    with loaded.use("p"):
        assert torch.equal(logits(again), logits(model.eval()))

    resumed, other = order()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    second = PrefixTrainer(
        other, "p", model=resumed, args=trainer.args, train_dataset=EXAMPLES, data_collator=default_data_collator
    )
    second.remove_callback(PrinterCallback)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [log["loss"] for log in second.state.log_history if "loss" in log] == losses


def test_either_trains_alone(tmp_path: Path) -> None:
    model = adapted(build_model("llama"))
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(5, init="random"))
    assert {name.split(".")[0] for name, p in bank.model.named_parameters() if p.requires_grad} == {"antefix_prefixes"}

    model, bank = prefix_first()
    assert all("lora_" in name for name, p in bank.model.named_parameters() if p.requires_grad)
    before = bank.prefix("p")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(3):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(key, before.keys[path]) for path, key in bank.prefix("p").keys.items())


def test_rows_choose_adapter_and_prefix_by_themselves() -> None:
    """PEFT picks an adapter for each row, the bank a prefix."""
    model = adapted(build_model("llama"))
    bank = antefix.attach(model)
    bank.add("p", random_prefix(bank.sites, 5))
    model.eval()
    names = ["default", "__base__", "default"]
    with bank.use(["p", "p", None]), torch.no_grad():
        mixed = model(input_ids=IDS, adapter_names=names).logits
    for row, (adapter, prefix) in enumerate(zip(names, ["p", "p", None], strict=True)):
        with bank.use(prefix), torch.no_grad():
            alone = model(input_ids=IDS[row : row + 1], adapter_names=[adapter]).logits[0]
        torch.testing.assert_close(mixed[row], alone, atol=1e-5, rtol=0)  # rows of a batch are multiplied otherwise


def test_the_adapter_of_a_bank_is_saved_without_asking(tmp_path: Path) -> None:
    """With everything that PEFT would save of it, biases as well."""
    torch.manual_seed(2)
    config = peft.LoraConfig(target_modules=["c_attn"], r=4, bias="all", fan_in_fan_out=True)
    model = peft.get_peft_model(build_model("gpt2"), config)
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(5, init="random"), freeze_base=False)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=2, learning_rate=0.05, report_to="none", disable_tqdm=True,
        use_cpu=True, remove_unused_columns=False, save_strategy="no",
    )  # fmt: skip
    trainer = PrefixTrainer(bank, "p", args=arguments, train_dataset=EXAMPLES, data_collator=default_data_collator)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(model_name="both")
    card = (tmp_path / "run" / "README.md").read_text()
    assert card.index('model = PeftModel.from_pretrained(model, "you/both")') < card.index(
        "bank = antefix.attach(model)"
    )
    again = peft.PeftModel.from_pretrained(build_model("gpt2"), tmp_path / "run")
    loaded = antefix.attach(again)
    loaded.load(tmp_path / "run" / "prefix.safetensors", "p")
    with loaded.use("p"):
        assert torch.equal(logits(again), logits(model.eval()))


def classifier() -> PreTrainedModel:
    torch.manual_seed(1)
    return LlamaForSequenceClassification(LlamaConfig(**build_model("llama").config.to_dict() | {"num_labels": 3}))


def test_a_head_of_pefts_and_that_of_a_prefix(tmp_path: Path) -> None:
    """PEFT wraps the base's head to train a copy; the prefix trains one of its own, which fits the bare base, too."""
    model = peft.get_peft_model(classifier(), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], r=2))
    with torch.no_grad():
        model.base_model.model.score.modules_to_save["default"].weight.mul_(2.0)
    alone = logits(model.eval())
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(5, init="random", trainable_modules=["score"]))
    assert torch.equal(bank.heads("p")["score"].weight, 2.0 * classifier().score.weight)  # it begins as PEFT's
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(input_ids=IDS, labels=torch.tensor([0, 1, 2])).loss.backward()
    optimizer.step()
    trained = logits(model)
    with bank.use(None):
        assert torch.equal(logits(model), alone)

    bank.save("p", tmp_path / "p.safetensors")
    assert set(antefix.load_prefix(tmp_path / "p.safetensors").modules) == {"score:weight"}
    again = peft.get_peft_model(classifier(), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], r=2))
    for loaded in (classifier().eval(), again.eval()):  # whose LoRA layers add zeros
        other = antefix.attach(loaded)
        other.load(tmp_path / "p.safetensors", "p")
        with other.use("p"):
            torch.testing.assert_close(logits(loaded), trained, atol=1e-6, rtol=0)
        assert (logits(loaded) - trained).abs().max() > 1e-3


def test_pefts_copy_of_a_head_computes_also_where_the_prefix_came_first() -> None:
    model = classifier().eval()
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(5, init="random", trainable_modules=["score"]))
    before = logits(model)
    adapted_model = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], r=2))
    copied = model.score.modules_to_save["default"]
    with bank.use(None):
        bare = logits(adapted_model)
        adapted_model(input_ids=IDS, labels=torch.tensor([0, 1, 2])).loss.backward()
        assert copied.weight.grad.abs().max() > 0
        with torch.no_grad():
            copied.weight.mul_(2.0)
        assert torch.equal(logits(adapted_model), 2.0 * bare)
    assert torch.equal(logits(adapted_model), before)  # behind the prefix, its own head computes
    bank.detach()
    assert torch.equal(logits(adapted_model), 2.0 * bare)


def test_a_merged_adapter_takes_a_head_away_and_the_bank_says_so() -> None:
    model = peft.get_peft_model(classifier(), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], r=2))
    bank = antefix.attach(model.eval())
    bank.add("p", antefix.PrefixConfig(5, init="random", trainable_modules=["score"]))
    expected, prefix = logits(model), bank.prefix("p")
    merged = model.merge_and_unload()
    with pytest.raises(antefix.ConfigError, match=r"'score' of .* was replaced"):
        logits(merged)
    bank.add("again", prefix)
    with bank.use("again"):
        torch.testing.assert_close(logits(merged), expected, atol=1e-6, rtol=0)


def test_an_adapter_that_could_not_be_saved_is_refused(tmp_path: Path) -> None:
    model, bank = prefix_first()
    with pytest.raises(antefix.ConfigError, match="pass the PeftModel as model"):
        PrefixTrainer(
            bank, "p", args=TrainingArguments(output_dir=str(tmp_path), report_to="none"), train_dataset=EXAMPLES
        )
    assert model.get_base_model() is bank.model


def test_a_mixed_model_of_pefts_is_opened_from_within() -> None:
    """It cannot say what its base is, as a `PeftModel` can."""
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=False)
    model = peft.get_peft_model(build_model("llama"), config, mixed=True)
    with pytest.raises(antefix.UnsupportedModelError, match="attach to the one inside of it"):
        antefix.attach(model)
    bank = antefix.attach(model.base_model.model)
    bank.add("p", random_prefix(bank.sites, 5))
    bare = logits(model.eval())
    with bank.use("p"):
        assert (logits(model) - bare).abs().max() > 1e-3
