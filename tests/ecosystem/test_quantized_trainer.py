"""PrefixTrainer on quantised bases, which Trainer takes only with something trainable that it knows."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PrinterCallback, Trainer, TrainingArguments, default_data_collator

import antefix
from antefix.training import PrefixTrainer
from tests.parity.test_quantized import bitsandbytes, load, torchao

EXAMPLES = [
    {"input_ids": row, "labels": row}
    for row in torch.randint(3, 1000, (8, 9), generator=torch.Generator().manual_seed(0)).tolist()
]


@pytest.mark.parametrize(
    ("library", "bits"), [(torchao, "int8"), (torchao, "int4"), (bitsandbytes, "int8")]
)  # on a CPU, bitsandbytes has no gradients in 4 bits
def test_it_trains(library: Any, bits: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    bank = antefix.attach(load(library(bits)))
    bank.add("p", antefix.PrefixConfig(5, init="random"))
    settings: dict[str, Any] = {
        "model": bank.model,
        "args": TrainingArguments(
            output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=8, learning_rate=0.05, logging_steps=1,
            report_to="none", disable_tqdm=True, use_cpu=True, remove_unused_columns=False, save_steps=2,
        ),
        "train_dataset": EXAMPLES,
        "data_collator": default_data_collator,
    }  # fmt: skip
    with pytest.raises(ValueError, match="purely quantized"):  # what PrefixTrainer is for
        Trainer(**settings)
    trainer = PrefixTrainer(bank, "p", **settings)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < losses[0]
    assert bank.model._hf_peft_config_loaded is False
    assert (
        antefix.load_prefix(tmp_path / "checkpoint-4" / "prefix.safetensors").keys.keys()
        == bank.prefix("p").keys.keys()
    )
    resumed = PrefixTrainer(bank, "p", **settings)
    resumed.remove_callback(PrinterCallback)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [log["loss"] for log in resumed.state.log_history if "loss" in log] == pytest.approx(losses, abs=1e-6)
