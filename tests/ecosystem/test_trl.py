"""TRL's trainers, real, on a model with a bank: packing, and a reference that is no second copy."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PrinterCallback

import antefix
from antefix.embedded import model_path
from antefix.training import BareBase, PrefixTrainer
from tests.parity.test_quantized import bitsandbytes, load

trl = pytest.importorskip("trl", reason='TRL is not installed: pip install "antefix[trl]"')

TOKENIZER = AutoTokenizer.from_pretrained(model_path())
QUIET = {
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "logging_steps": 1,
    "bf16": False,
    "save_strategy": "no",
}


class PrefixSFTTrainer(PrefixTrainer, trl.SFTTrainer):
    """SFT that saves prefixes."""


class PrefixDPOTrainer(PrefixTrainer, trl.DPOTrainer):
    """DPO that saves prefixes."""


class PrefixGRPOTrainer(PrefixTrainer, trl.GRPOTrainer):
    """GRPO that saves prefixes."""


class PrefixRLOOTrainer(PrefixTrainer, trl.RLOOTrainer):
    """RLOO that saves prefixes."""


def base() -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    return model


def attached(model: Any = None, freeze_base: bool = True, **settings: Any) -> antefix.PrefixBank:
    bank = antefix.attach(model or base())
    torch.manual_seed(0)
    bank.add("p", antefix.PrefixConfig(5, init="random", **settings), freeze_base=freeze_base)
    return bank


def adapted() -> Any:
    """Return the base with LoRA layers that do nothing yet."""
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(base(), peft.LoraConfig(target_modules=["q_proj"], r=2, task_type="CAUSAL_LM"))


def losses(trainer: Any) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def row_losses(model: PreTrainedModel, rows: list[list[int]]) -> tuple[float, int]:
    """Return the sum of the losses of rows that each run alone, and of how many tokens."""
    total, tokens = 0.0, 0
    for row in rows:
        ids = torch.tensor([row])
        with torch.no_grad():
            total += model(input_ids=ids, labels=ids).loss.item() * (len(row) - 1)
        tokens += len(row) - 1
    return total, tokens


@pytest.mark.parametrize("packing", [False, True])
def test_sft(packing: bool, tmp_path: Path) -> None:
    """The first loss is that of the rows one by one, each behind the prefix, also where TRL packs them into one."""
    bank = attached()
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 1000, (length,), generator=generator).tolist() for length in (9, 14, 5, 20)]
    total, tokens = row_losses(bank.model, rows)
    trainer = PrefixSFTTrainer(
        bank,
        "p",
        args=trl.SFTConfig(
            output_dir=str(tmp_path), packing=packing, max_length=64, per_device_train_batch_size=1 if packing else 4,
            max_steps=3, learning_rate=0.05, **QUIET,
        ),
        train_dataset=Dataset.from_dict({"input_ids": rows}),
        processing_class=TOKENIZER,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    batch = next(iter(trainer.get_train_dataloader()))
    assert len(batch["input_ids"]) == (1 if packing else 4)
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(total / tokens, abs=1e-5)
    assert losses(trainer)[-1] < losses(trainer)[0]
    trainer.save_model()
    assert [path.name for path in tmp_path.iterdir()] == ["prefix.safetensors"]


def preferences() -> Dataset:
    rows = [{"prompt": f"name: {name} |", "chosen": " job: baker", "rejected": " job: pilot"} for name in "ABCDEFGH"]
    return Dataset.from_list(rows)


def dpo(bank: antefix.PrefixBank, folder: Path, **given: Any) -> PrefixDPOTrainer:
    settings = given.pop("settings", {})
    trainer = PrefixDPOTrainer(
        bank,
        "p",
        args=trl.DPOConfig(
            output_dir=str(folder), per_device_train_batch_size=4, max_steps=4, learning_rate=0.02, **QUIET, **settings
        ),
        train_dataset=preferences(),
        processing_class=TOKENIZER,
        **given,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def test_a_trained_output_layer_that_the_loss_would_leave_out_is_refused(tmp_path: Path) -> None:
    """TRL computes log-probabilities from the weight of the base's own; modules elsewhere train there, too."""
    bank = attached(trainable_modules=["lm_head"])
    with pytest.raises(antefix.ConfigError, match=r"without calling the 'lm_head' .* leave it out of trainable_module"):
        dpo(bank, tmp_path).train()
    bank = attached(trainable_modules=["model.norm"])
    before = bank.prefix("p").modules
    dpo(bank, tmp_path).train()
    assert all(not torch.equal(tensor, before[name]) for name, tensor in bank.prefix("p").modules.items())


def by_reward(trainer_class: Any, config_class: Any, bank: antefix.PrefixBank, folder: Path, **settings: Any) -> Any:
    """Return a trainer that rewards completions of many characters, and keeps near a reference."""
    usual = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 6, "learning_rate": 0.02}
    trainer = trainer_class(
        bank,
        "p",
        args=config_class(output_dir=str(folder), max_steps=2, **{**QUIET, **usual, "beta": 0.1, **settings}),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in preferences()]),
        processing_class=TOKENIZER,
        reward_funcs=lambda completions, **_: [len(set(text)) / 20 for text in completions],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


@pytest.mark.parametrize(
    ("trainer_class", "config_class"),
    [(PrefixGRPOTrainer, trl.GRPOConfig), (PrefixRLOOTrainer, trl.RLOOConfig)],
    ids=["grpo", "rloo"],
)
def test_rewarded_training_keeps_near_the_bare_base(
    trainer_class: Any, config_class: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside a PeftModel, too, whose reference would be the model without its adapters, but with the prefix."""

    def divergences(model: Any) -> list[float]:
        trainer = by_reward(trainer_class, config_class, attached(model), tmp_path)
        trainers.append(trainer)
        torch.manual_seed(0)
        trainer.train()
        return [log["kl"] for log in trainer.state.log_history if "kl" in log]

    trainers: list[Any] = []
    with monkeypatch.context() as changed:
        changed.setattr(PrefixTrainer, "_made_reference", False)
        copied = divergences(base())  # TRL's own reference, loaded a second time
    assert copied[0] > 0.1
    assert divergences(base()) == copied
    assert divergences(adapted()) == pytest.approx(copied, abs=1e-4)  # LoRA layers that add zeros round otherwise
    assert [type(trainer.ref_model) for trainer in trainers] == [type(base()), BareBase, BareBase]

    with pytest.raises(antefix.ConfigError, match=r"is trained beside the prefix.*set beta to 0"):
        by_reward(trainer_class, config_class, attached(adapted(), freeze_base=False), tmp_path)
    without = by_reward(trainer_class, config_class, attached(adapted(), freeze_base=False), tmp_path, beta=0.0)
    assert without.ref_model is None


@pytest.mark.parametrize("engine", ["use_vllm", "use_transformers_continuous_batching"])
def test_generating_in_another_engine_is_refused(tmp_path: Path, engine: str) -> None:
    with pytest.raises(antefix.ConfigError, match=f"{engine} .* no prefix reaches"):
        by_reward(PrefixGRPOTrainer, trl.GRPOConfig, attached(), tmp_path, **{engine: True})


def live_bytes() -> int:
    """Return how many bytes the tensors of this process hold, each storage once."""
    gc.collect()
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if torch.is_tensor(t)
    }
    return sum(storages.values())


def test_the_reference_of_dpo_is_the_same_model_without_its_prefix(tmp_path: Path) -> None:
    bank = attached()
    base_bytes = sum(p.numel() * p.element_size() for p in bank.model.parameters())
    before = live_bytes()
    shared = dpo(bank, tmp_path / "shared")
    assert isinstance(shared.ref_model, BareBase)
    assert list(shared.ref_model.parameters()) == []
    assert live_bytes() - before < 0.05 * base_bytes
    shared.train()

    copied = dpo(attached(), tmp_path / "copied", ref_model=base())
    assert live_bytes() - before > 1.95 * base_bytes  # another model, and the copy of it
    copied.train()
    assert losses(shared) == losses(copied)
    assert losses(shared)[0] > losses(shared)[-1]


@pytest.mark.parametrize("precompute", [False, True])
def test_rewards_are_measured_against_the_bare_base(precompute: bool, tmp_path: Path) -> None:
    """DPO's first loss, worked out by hand from the log-probabilities with and without the prefix."""
    bank = attached()
    model = bank.model
    sums: dict[tuple[bool, str], torch.Tensor] = {}
    for on in (True, False):
        for side in ("chosen", "rejected"):
            found = []
            for row in preferences():
                prompt, whole = TOKENIZER(row["prompt"])["input_ids"], TOKENIZER(row["prompt"] + row[side])["input_ids"]
                ids = torch.tensor([[*whole, TOKENIZER.eos_token_id]])
                with torch.no_grad(), bank.use("p" if on else None):
                    logp = model(input_ids=ids).logits.log_softmax(-1)[0, :-1]
                found.append(logp.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].sum())
            sums[on, side] = torch.stack(found)
    margins = (sums[True, "chosen"] - sums[False, "chosen"]) - (sums[True, "rejected"] - sums[False, "rejected"])
    expected = -torch.nn.functional.logsigmoid(0.1 * margins).mean().item()
    settings = {"precompute_ref_log_probs": precompute, "beta": 0.1}
    trainer = dpo(bank, tmp_path, settings=settings | {"gradient_accumulation_steps": 2})
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(expected, abs=1e-5)
    assert abs(expected - 0.6931) > 1e-3


def test_there_is_no_reference_where_more_than_the_prefix_trains(tmp_path: Path) -> None:
    bank = attached(adapted(), freeze_base=False)
    with pytest.raises(antefix.ConfigError, match=r"is trained beside the prefix.*pass a ref_model"):
        dpo(bank, tmp_path)
    assert dpo(bank, tmp_path, ref_model=base()).ref_model is not None


def test_a_lora_config_of_trl_trains_beside_the_prefix(tmp_path: Path) -> None:
    lora = pytest.importorskip("peft").LoraConfig(target_modules=["q_proj"], r=2, task_type="CAUSAL_LM")
    bank = attached()
    before = bank.prefix("p")
    rows = [TOKENIZER(f"name: {name} | job: baker")["input_ids"] for name in "ABCDEFGH"]
    trainer = PrefixSFTTrainer(
        bank,
        "p",
        args=trl.SFTConfig(output_dir=str(tmp_path), max_steps=2, learning_rate=0.05, **QUIET),
        train_dataset=Dataset.from_dict({"input_ids": rows}),
        processing_class=TOKENIZER,
        peft_config=lora,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()
    assert not any(torch.equal(key, before.keys[path]) for path, key in bank.prefix("p").keys.items())
    assert {path.name for path in tmp_path.iterdir()} >= {"prefix.safetensors", "adapter_model.safetensors"}
    with pytest.raises(antefix.ConfigError, match="pass a ref_model"):
        dpo(attached(), tmp_path, peft_config=lora)


def test_the_reference_has_no_dropout(tmp_path: Path) -> None:
    bank = attached()
    for layer in bank.model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    bank.model.train()
    ids, bare = torch.arange(3, 40)[None], BareBase(bank)
    with torch.no_grad():
        assert not torch.equal(bank.model(input_ids=ids).logits, bank.model(input_ids=ids).logits)
        assert torch.equal(bare(input_ids=ids).logits, bare(input_ids=ids).logits)
    assert all(module.training for module in bank.model.modules())
    with pytest.raises(antefix.ConfigError, match="sync_ref_model"):
        dpo(bank, tmp_path, settings={"sync_ref_model": True})


def test_a_prefix_on_a_quantised_base_stays_in_fp32(tmp_path: Path) -> None:
    """TRL casts whatever is trainable there to bf16."""
    bank = antefix.attach(load(bitsandbytes("int8")))
    bank.add("p", antefix.PrefixConfig(5, init="random"))
    before = bank.prefix("p")
    trainer = PrefixSFTTrainer(
        bank,
        "p",
        args=trl.SFTConfig(output_dir=str(tmp_path), max_steps=1, **QUIET),
        train_dataset=Dataset.from_dict({"input_ids": [[3, 4, 5]]}),
        processing_class=TOKENIZER,
    )
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    assert all(torch.equal(key, before.keys[path]) for path, key in bank.prefix("p").keys.items())


def test_a_reference_knows_its_weights_but_holds_none() -> None:
    bank = attached()
    state = bank.model.state_dict()
    bare = BareBase(bank)
    assert set(bare.state_dict()) == {name for name in state if not name.startswith("antefix_prefixes.")}
    ids = torch.tensor([[5, 6, 7]])
    with bank.use(None):
        expected = bank.model(input_ids=ids).logits
    assert torch.equal(bare(input_ids=ids).logits, expected)
    assert torch.equal(
        bare.base_model(input_ids=ids)[0], bare(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    )
    assert not torch.equal(bank.model(input_ids=ids).logits, expected)
    with bank.use(None):
        written = bank.model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(bare.generate(input_ids=ids, max_new_tokens=8, do_sample=False), written)
    assert not torch.equal(bank.model.generate(input_ids=ids, max_new_tokens=8, do_sample=False), written)
