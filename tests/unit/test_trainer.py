"""PrefixTrainer: checkpoints without the base, training that goes on bit for bit, the best one, early stopping."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import (
    BartForConditionalGeneration,
    EarlyStoppingCallback,
    PreTrainedModel,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

import antefix
from antefix.initialize import token_prefix
from antefix.training import PrefixTrainer
from antefix.training.card import Subject
from antefix.training.checkpoint import Trained
from antefix.training.label_trainer import LabelTrainer
from tests.conftest import build_model, draw_ids

EXAMPLES = [{"input_ids": row, "labels": row} for row in (draw_ids(24, 7) // 2 + 4).tolist()]
HELD_OUT = [{"input_ids": [66 - token for token in row["input_ids"]], "labels": [3] * 7} for row in EXAMPLES[:8]]
"""Rows of other tokens with an answer that never occurs in training, so that training makes them worse."""


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    usual = {
        "per_device_train_batch_size": 4, "max_steps": 8, "learning_rate": 0.05, "logging_steps": 1, "save_steps": 4,
        "report_to": "none", "disable_tqdm": True, "use_cpu": True, "remove_unused_columns": False, "seed": 3,
    }  # fmt: skip
    return TrainingArguments(output_dir=str(folder), **{**usual, **settings})


def trainer(
    folder: Path,
    config: antefix.PrefixConfig | None = None,
    head_learning_rate: float | None = 1e-3,
    **settings: Any,
) -> PrefixTrainer:
    """Return a trainer of a small Llama, always the same."""
    bank = antefix.attach(build_model("llama"))
    torch.manual_seed(0)
    bank.add("p", config or antefix.PrefixConfig(5, init="random"))
    callbacks = settings.pop("callbacks", [])
    made = PrefixTrainer(
        bank,
        "p",
        head_learning_rate,
        args=arguments(folder, **settings),
        train_dataset=EXAMPLES,
        eval_dataset=HELD_OUT,
        data_collator=default_data_collator,
        callbacks=callbacks,
    )
    made.remove_callback(PrinterCallback)
    return made


def losses(made: Trainer) -> list[float]:
    return [log["loss"] for log in made.state.log_history if "loss" in log]


def names_in(path: Path) -> set[str]:
    with safe_open(path, "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize(
    "config",
    [
        antefix.PrefixConfig(5, init="random", dropout=0.1),
        antefix.PrefixConfig(5, init="random", reparameterization="mlp", encoder_hidden_size=16),
        antefix.PrefixConfig(5, init="random", trainable_modules=["lm_head"]),
    ],
    ids=["embedding", "mlp", "head"],
)
def test_resumed_training_is_the_uninterrupted_one_bit_for_bit(config: antefix.PrefixConfig, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", config)
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "again" / "checkpoint-4")
    resumed = trainer(tmp_path / "again", config)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(whole)
    assert len(set(losses(whole))) == 8
    first, second = whole.bank.prefix("p"), resumed.bank.prefix("p")
    assert all(torch.equal(first.keys[path], second.keys[path]) for path in first.keys)
    assert all(torch.equal(first.modules[name], second.modules[name]) for name in first.modules)


def test_a_checkpoint_holds_what_is_trained_and_no_base_weights(tmp_path: Path) -> None:
    config = antefix.PrefixConfig(
        5, init="random", reparameterization="mlp", encoder_hidden_size=16, trainable_modules=["norm"]
    )
    made = trainer(tmp_path, config)
    made.train()
    folder = tmp_path / "checkpoint-8"
    assert {path.name for path in folder.iterdir()} >= {
        "prefix.safetensors", "trained.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth",
        "trainer_state.json",
    }  # fmt: skip
    base_bytes = sum(p.numel() * 4 for n, p in made.bank.model.named_parameters() if "antefix" not in n)
    kept = names_in(folder / "trained.safetensors")
    assert {name.rpartition(".")[0] for name in kept} == {
        "prefix.0.embedding", "prefix.0.transform.0", "prefix.0.transform.2", "prefix.1",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) < base_bytes
    made.save_model(str(tmp_path / "final"))
    assert [path.name for path in (tmp_path / "final").iterdir()] == ["prefix.safetensors"]
    saved, now = antefix.load_prefix(tmp_path / "final" / "prefix.safetensors"), made.bank.prefix("p")
    assert all(torch.equal(saved.keys[path], now.keys[path]) for path in now.keys)


@pytest.mark.parametrize(
    "settings", [{"reparameterization": "mlp", "encoder_hidden_size": 16}, {"num_frozen_tokens": 1}]
)
def test_the_text_that_training_started_from_is_kept(settings: dict[str, Any], tmp_path: Path) -> None:
    """The MLP adds to it, and the frozen token is of it: a start from another text would not give it again."""
    model = build_model("llama")
    sites = antefix.discover_sites(model)
    config = antefix.PrefixConfig(5, **settings)
    starts = [token_prefix(model, draw_ids(1, 5, seed=seed), sites) for seed in (1, 2)]
    first, second = (antefix.PrefixEncoder(sites, config, start) for start in starts)
    kept = Trained(first, [first], {})
    kept.save(kept.gathered(), tmp_path)
    assert not torch.equal(first()[0], second()[0])
    Trained(second, [second], {}).load(tmp_path)
    assert torch.equal(first(), second())
    without = antefix.PrefixEncoder(sites, replace(config, init="random", num_frozen_tokens=0))
    with pytest.raises(antefix.ConfigError, match=r"'prefix\.0\.(start|frozen)', and what is trained here has nothing"):
        Trained(without, [without], {}).load(tmp_path)


@pytest.mark.parametrize(("head_learning_rate", "expected"), [(1e-3, 1e-3), (None, 0.05)])
def test_a_head_trains_at_its_own_rate(head_learning_rate: float | None, expected: float, tmp_path: Path) -> None:
    """The first step of AdamW moves whatever has a gradient by the learning rate."""
    config = antefix.PrefixConfig(5, init="random", trainable_modules=["lm_head"])
    made = trainer(tmp_path, config, head_learning_rate, max_steps=1, lr_scheduler_type="constant", max_grad_norm=0.0)
    parameters = [parameter for module in made.bank.modules("p") for parameter in module.parameters()]
    before = [parameter.detach().clone() for parameter in parameters]
    made.train()
    moved = [(new - old).abs().max().item() for new, old in zip(parameters, before, strict=True)]
    assert moved == pytest.approx([0.05, expected], rel=1e-3)


def test_a_rate_of_its_own_wants_an_optimiser_that_trainer_makes(tmp_path: Path) -> None:
    bank = trainer(tmp_path).bank
    optimizer = torch.optim.SGD(bank.model.parameters())
    with pytest.raises(antefix.ConfigError, match="head_learning_rate is for an optimiser that Trainer makes"):
        PrefixTrainer(bank, "p", 1e-3, args=arguments(tmp_path), optimizers=(optimizer, None))


def test_each_trainer_trains_its_own_prefix(tmp_path: Path) -> None:
    """Whatever was made active since, and with the other left as it is; a checkpoint does not depend on the order."""
    bank = antefix.attach(build_model("llama"))
    for name in ("other", "p"):
        torch.manual_seed(0)
        bank.add(name, antefix.PrefixConfig(5, init="random"))
    settings = {"train_dataset": EXAMPLES, "data_collator": default_data_collator}
    ours = PrefixTrainer(bank, "p", args=arguments(tmp_path), **settings)
    PrefixTrainer(bank, "other", args=arguments(tmp_path / "other"), **settings)
    before = bank.prefix("other")
    for trained in (ours, alone := trainer(tmp_path / "alone")):
        trained.remove_callback(PrinterCallback)
        trained.train()
    assert losses(ours) == losses(alone)
    assert ours.evaluate(HELD_OUT)["eval_loss"] == alone.evaluate(HELD_OUT)["eval_loss"]
    assert all(torch.equal(bank.prefix("other").keys[path], key) for path, key in before.keys.items())
    resumed = trainer(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert losses(resumed) == losses(ours)


def test_a_model_that_is_not_the_banks_is_refused(tmp_path: Path) -> None:
    bank = trainer(tmp_path).bank
    with pytest.raises(antefix.ConfigError, match="not the model of this bank"):
        PrefixTrainer(bank, "p", model=build_model("llama"), args=arguments(tmp_path), train_dataset=EXAMPLES)


def test_a_model_in_place_of_a_bank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(antefix.ConfigError, match=r"takes a bank .* not a LlamaForCausalLM; .* antefix\.attach"):
        PrefixTrainer(build_model("llama"), "p", args=arguments(tmp_path), train_dataset=EXAMPLES)


def test_a_prefix_whose_parameters_no_trainer_finds_is_refused(tmp_path: Path) -> None:
    """Its module is the caller's; three steps would leave it as it was."""
    bank = trainer(tmp_path).bank
    saved = bank.prefix("p")
    bank.add("own", antefix.PrefixEncoder(bank.sites, antefix.PrefixConfig(saved.num_virtual_tokens), saved))
    with pytest.raises(antefix.ConfigError, match="'own' is made by a module of your own, which is no part of the"):
        PrefixTrainer(bank, "own", args=arguments(tmp_path), train_dataset=EXAMPLES)


def test_a_model_made_anew_is_refused(tmp_path: Path) -> None:
    bank = trainer(tmp_path).bank
    with pytest.raises(antefix.ConfigError, match=r"model_init makes a model anew.*leave it out"):
        PrefixTrainer(bank, "p", model_init=lambda: build_model("llama"), args=arguments(tmp_path))


def test_copies_of_the_model_on_several_gpus_are_refused(tmp_path: Path) -> None:
    """As Trainer makes them in one process that sees more than one."""
    bank, args = trainer(tmp_path).bank, arguments(tmp_path)
    assert args.n_gpu <= 1
    args._n_gpu = 2
    with pytest.raises(antefix.ConfigError, match=r"one process has 2 GPUs.* by torchrun"):
        PrefixTrainer(bank, "p", args=args, train_dataset=EXAMPLES)


def test_what_would_be_trained_but_not_saved_is_refused(tmp_path: Path) -> None:
    """A trained copy of the same module is saved, and so is the whole model by a plain Trainer."""
    bank = antefix.attach(build_model("llama"))
    bank.add("p", antefix.PrefixConfig(5, init="random"), freeze_base=False)
    settings = {"args": arguments(tmp_path), "train_dataset": EXAMPLES, "data_collator": default_data_collator}
    with pytest.raises(antefix.ConfigError, match=r"'model\.embed_tokens\.weight' is .* would not be saved; freeze it"):
        PrefixTrainer(bank, "p", **settings)
    bank.model.requires_grad_(False)
    bank.model.lm_head.requires_grad_(True)
    with pytest.raises(antefix.ConfigError, match=r"'lm_head\.weight' is .* name its module in trainable_modules"):
        PrefixTrainer(bank, "p", **settings)
    bank.model.lm_head.requires_grad_(False)
    bank.add("q", antefix.PrefixConfig(5, init="random", trainable_modules=["lm_head"]))
    made = PrefixTrainer(bank, "q", **settings)
    made.remove_callback(PrinterCallback)
    made.train()
    made.save_model(str(tmp_path))
    trained = bank.heads("q")["lm_head"].weight
    assert torch.equal(antefix.load_prefix(tmp_path / "prefix.safetensors").modules["lm_head:weight"], trained)


def test_labels_of_an_encoder_decoder_weigh_the_same_in_however_many_batches(tmp_path: Path) -> None:
    long, short = EXAMPLES[:2]
    rows = [long, short | {"labels": [*short["labels"][:2], *[-100] * 5]}]
    found = []
    for batch_size in (2, 1):
        bank = antefix.attach(build_model("bart", dropout=0.0))
        torch.manual_seed(0)
        bank.add("p", antefix.PrefixConfig(5, init="random"))
        args = arguments(
            tmp_path, per_device_train_batch_size=batch_size, gradient_accumulation_steps=2 // batch_size, max_steps=1,
            optim="sgd", learning_rate=1.0, max_grad_norm=0.0, save_strategy="no",
        )  # fmt: skip
        made = LabelTrainer(bank, "p", args=args, train_dataset=rows, data_collator=default_data_collator)
        found.append((made.train().training_loss, bank.prefix("p").keys))
    (loss, keys), (in_parts, keys_in_parts) = found
    # Sums in another order.
    assert in_parts == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(keys_in_parts, keys, rtol=1e-5, atol=1e-6)


def test_a_plain_trainer_trains_too_and_saves_the_base(tmp_path: Path) -> None:
    bank = trainer(tmp_path / "unused").bank
    plain = Trainer(
        model=bank.model, args=arguments(tmp_path), train_dataset=EXAMPLES, data_collator=default_data_collator
    )
    plain.remove_callback(PrinterCallback)
    plain.train()
    ours = trainer(tmp_path / "ours")
    ours.train()
    assert losses(plain) == losses(ours)
    saved = names_in(tmp_path / "checkpoint-8" / "model.safetensors")
    assert "antefix_prefixes.0.embedding.weight" in saved
    assert "model.layers.0.self_attn.q_proj.weight" in saved


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path: Path) -> None:
    made = trainer(
        tmp_path, learning_rate=0.3, eval_strategy="steps", eval_steps=2, save_steps=2, max_steps=12,
        load_best_model_at_end=True, lr_scheduler_type="constant",
    )  # fmt: skip
    made.train()
    evaluations = {log["step"]: log["eval_loss"] for log in made.state.log_history if "eval_loss" in log}
    best = min(evaluations, key=evaluations.__getitem__)
    assert best < 12
    assert made.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert made.evaluate()["eval_loss"] == evaluations[best]
    kept = antefix.load_prefix(tmp_path / f"checkpoint-{best}" / "prefix.safetensors")
    assert all(torch.equal(key, kept.keys[path]) for path, key in made.bank.prefix("p").keys.items())


def test_early_stopping(tmp_path: Path) -> None:
    made = trainer(
        tmp_path, learning_rate=0.3, eval_strategy="steps", eval_steps=2, save_steps=2, max_steps=40,
        load_best_model_at_end=True, lr_scheduler_type="constant", callbacks=[EarlyStoppingCallback(2)],
    )  # fmt: skip
    made.train()
    assert made.state.global_step < 40
    assert made.evaluate()["eval_loss"] == made.state.best_metric


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path).train()
    other = trainer(tmp_path, antefix.PrefixConfig(6, init="random"))
    with pytest.raises(
        antefix.ConfigError, match=r"it has \(5, .* trained here has \(6, .*resume with the same prefix"
    ):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    first, last = (antefix.PrefixConfig(5, init="random", layers=[layer]) for layer in (0, 2))
    trainer(tmp_path / "first", first).train()
    with pytest.raises(antefix.ConfigError, match="stands at other attention"):
        trainer(tmp_path, last).train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-4"))
    subjects = [Subject((), 3, {"labels": labels}).as_dict() for labels in (["a"], ["b"])]
    one, other = (Trained(torch.nn.Linear(2, 1), [], subject) for subject in subjects)
    one.save(one.gathered(), tmp_path)
    with pytest.raises(antefix.ConfigError, match="or tells other labels"):
        other.load(tmp_path)
    (tmp_path / "checkpoint-4" / "trained.safetensors").write_bytes(b"broken")
    with pytest.raises(antefix.PrefixFormatError, match="is no checkpoint of PrefixTrainer"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_it_trains_a_prefix_that_was_kept_as_it_was(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    bank = made.bank
    bank.requires_grad_("p", False)
    assert not any(p.requires_grad for p in bank.model.parameters())
    PrefixTrainer(bank, "p", args=arguments(tmp_path), train_dataset=EXAMPLES, data_collator=default_data_collator)
    assert [n for n, p in bank.model.named_parameters() if p.requires_grad] == ["antefix_prefixes.0.embedding.weight"]
    bank.add("data", bank.prefix("p"))
    with pytest.raises(antefix.ConfigError, match="'data' has no parameters here"):
        bank.requires_grad_("data")


def test_as_a_mixin_it_predicts_with_generate(tmp_path: Path) -> None:
    class PrefixSeq2SeqTrainer(PrefixTrainer, Seq2SeqTrainer):
        pass

    model: PreTrainedModel = build_model("bart")
    assert isinstance(model, BartForConditionalGeneration)
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(5, init="random"))
    model.generation_config.update(min_new_tokens=8, max_length=9)
    predicted: list[Any] = []

    def score(prediction: Any) -> dict[str, float]:
        predicted.append(prediction.predictions)
        return {"rows": float(len(prediction.predictions))}

    made = PrefixSeq2SeqTrainer(
        bank,
        "p",
        args=Seq2SeqTrainingArguments(
            output_dir=str(tmp_path),
            per_device_eval_batch_size=4,
            max_steps=20,
            learning_rate=0.3,
            predict_with_generate=True,
            use_cpu=True,
            generation_max_length=9,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
        ),
        train_dataset=EXAMPLES,
        eval_dataset=EXAMPLES[:6],
        data_collator=default_data_collator,
        compute_metrics=score,
    )
    made.remove_callback(PrinterCallback)
    made.train()
    assert made.evaluate()["eval_rows"] == 6
    ids = torch.tensor([row["input_ids"] for row in EXAMPLES[:6]])
    with bank.use("p"):
        expected = model.generate(input_ids=ids)
    with bank.use(None):
        bare = model.generate(input_ids=ids)
    assert torch.equal(torch.from_numpy(predicted[0])[:, : expected.shape[1]], expected)
    assert not torch.equal(expected, bare)
