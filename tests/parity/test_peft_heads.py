"""Classifiers of PEFT: a trained head beside the prefix, on antefix's attention and in checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import antefix
from antefix.interop.peft import accelerate, write
from tests.parity.compare import assert_close, assert_far
from tests.parity.families import FAMILIES
from tests.parity.peft_models import IDS, PREFIX, TOKENS, TOLERANCE, classifier, gradients, logits, peft


@pytest.mark.parametrize(
    ("head", "task"), [("SequenceClassification", "SEQ_CLS"), ("TokenClassification", "TOKEN_CLS")]
)
def test_a_head_learns_and_goes_along(head: str, task: str, tmp_path: Path) -> None:
    """PEFT trains a copy of the head, which goes with the checkpoint into antefix and back."""
    model = classifier("BERT", head, task)
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
    base = FAMILIES["BERT"].build(f"BertFor{head}")
    bank = antefix.attach(base)
    bank.load(tmp_path / "theirs", "p")
    bank.activate("p")
    assert_close(logits(base), outputs.logits, TOLERANCE)
    write(bank.prefix("p"), tmp_path / "ours", base, bank.sites)
    back = peft.PeftModel.from_pretrained(FAMILIES["BERT"].build(f"BertFor{head}"), tmp_path / "ours")
    assert_close(logits(back), outputs.logits, TOLERANCE)


def test_a_head_trained_in_parts_is_written_as_the_whole_that_peft_loads(tmp_path: Path) -> None:
    base = FAMILIES["RoBERTa"].build("RobertaForSequenceClassification")
    bank = antefix.attach(base)
    for name, parts in (("part", ["classifier.out_proj"]), ("whole", ["classifier.out_proj", "classifier.dense"])):
        bank.add(name, antefix.PrefixConfig(TOKENS, init="random", trainable_modules=parts))
        for copied in bank.heads(name).values():
            torch.nn.init.normal_(copied.weight)
    with pytest.raises(antefix.ConfigError, match=r"no 'classifier.dense.weight'"):
        write(bank.prefix("part"), tmp_path / "ours", base, bank.sites, task_type="SEQ_CLS")
    assert not list(tmp_path.iterdir())
    write(bank.prefix("whole"), tmp_path / "ours", base, bank.sites, task_type="SEQ_CLS")
    bank.activate("whole")
    back = peft.PeftModel.from_pretrained(
        FAMILIES["RoBERTa"].build("RobertaForSequenceClassification"), tmp_path / "ours"
    )
    assert_close(logits(back), logits(base), TOLERANCE)


def test_each_row_has_the_head_of_its_adapter() -> None:
    model = classifier("BERT", "SequenceClassification", "SEQ_CLS")
    model.add_adapter("other", peft.PrefixTuningConfig(task_type="SEQ_CLS", **PREFIX))
    with torch.no_grad():
        model.base_model.classifier.modules_to_save["other"].weight.normal_()
    bank = accelerate(model)
    alone = []
    for row, name in enumerate(["default", "other"]):
        model.set_adapter(name)
        alone.append(logits(model, input_ids=IDS[row : row + 1]))
    model.set_adapter("default")
    together = logits(model, input_ids=IDS, adapter_names=["default", "other"])
    assert_close(together, torch.cat(alone), TOLERANCE)
    assert_far(together[1], logits(model)[1])
    bank.detach()
    assert not model.base_model.classifier._forward_pre_hooks


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
