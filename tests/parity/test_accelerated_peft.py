"""PEFT's models on antefix's attention compute and learn the same, and do what PEFT alone cannot.

Where PEFT cannot, a test first sees it fail, so that it tells when PEFT is repaired; what is right then comes from PEFT
on a way that works, such as greedy decoding with its usual cache.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, Trainer, TrainingArguments

import antefix
from antefix.interop.peft import accelerate
from tests.parity.compare import assert_close, assert_far
from tests.parity.families import FAMILIES, draw_ids
from tests.parity.peft_models import (
    CASES,
    IDS,
    KINDS,
    MLP,
    PREFIX,
    TOLERANCE,
    answer,
    family,
    gradients,
    inputs_for,
    logits,
    peft,
    wrap,
)


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


class Sentences(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Eight rows of tokens to learn."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        ids = draw_ids(1, 7, seed=number)[0]
        return {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_trainer_takes_the_same_steps(checkpointing: bool, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="Accelerate is not installed")

    def losses(model: Any, **settings: Any) -> list[float]:
        arguments = TrainingArguments(
            str(tmp_path), max_steps=4, per_device_train_batch_size=2, logging_steps=1, save_steps=4,
            learning_rate=0.01, report_to=[], use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, **settings,
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=Sentences())
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    theirs, ours = wrap(**MLP), wrap(**MLP)
    expected = losses(theirs)
    accelerate(ours)
    assert losses(ours, activation_checkpointing=checkpointing) == pytest.approx(expected, rel=1e-4)
    saved = peft.PeftModel.from_pretrained(family("Llama").build(), tmp_path / "checkpoint-4")
    assert_close(logits(saved), logits(theirs.eval()), 1e-3)  # four steps of rounding


def test_half_precision() -> None:
    model = wrap(base=family("Llama").build().to(torch.bfloat16))
    expected = logits(model)
    accelerate(model)
    assert_close(logits(model).float(), expected.float(), 2e-2)  # a step of bf16 is 0.8 %


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
    with pytest.raises((RuntimeError, AttributeError)):
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
    together = answer(model, ids, adapter_names=names, num_beams=2, num_return_sequences=2, min_new_tokens=8)
    assert torch.equal(together, torch.cat(answers))
    with pytest.raises(antefix.UnknownPrefixError, match="'short'"):
        answer(model, ids, adapter_names=["short"] * 3)
    model.train()(input_ids=ids, labels=ids, adapter_names=names).loss.backward()
    assert len(gradients(model)) == 2


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


def test_past_a_sliding_window_peft_loses_sight_of_the_prefix() -> None:
    """Where antefix keeps it in sight; that it then is right, the tests of the rule show."""
    model = wrap("Gemma 2", base=FAMILIES["Gemma 2"].build())
    theirs = logits(model)
    accelerate(model)
    assert_far(logits(model), theirs)
    assert_close(logits(model)[:, 0], theirs[:, 0], TOLERANCE)  # before anything slid away


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
    assert model.generate(input_ids=IDS, task_ids=IDS[:, 0]).shape[1] == IDS.shape[1] + 2


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
