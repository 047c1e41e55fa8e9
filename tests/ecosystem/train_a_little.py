"""Trains a small prefix for a few steps under any launcher; the main process writes the losses to `losses.json`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from transformers import TrainingArguments, default_data_collator

import antefix
from antefix.training import PrefixTrainer
from antefix.training.launch import leave_group
from tests.conftest import build_model, draw_ids


def shard_on_cpu() -> None:
    """Do for processes on a CPU what Accelerate does for those on GPUs alone: choose FSDP as the launcher asks."""
    Accelerator(cpu=True).state.fsdp_plugin = FullyShardedDataParallelPlugin()
    PartialState().distributed_type = DistributedType.FSDP


def learn() -> None:
    """Train on a global batch of eight, whatever the number of processes."""
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    examples = [{"input_ids": row, "labels": row} for row in draw_ids(24, 7).tolist()]
    model = build_model("llama")
    if kind == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=4))
    bank = antefix.attach(model)
    torch.manual_seed(0)
    config = antefix.PrefixConfig(
        5,
        init="random",
        reparameterization="mlp" if kind == "mlp" else None,
        encoder_hidden_size=16,
        trainable_modules=["lm_head"] if kind == "mlp" else [],
    )
    bank.add("p", config, freeze_base=kind != "lora")
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8 // processes,
        max_steps=6,
        save_steps=3,
        learning_rate=0.05,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
    )
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        shard_on_cpu()
    trainer = PrefixTrainer(
        bank, "p", model=model, args=arguments, train_dataset=examples, data_collator=default_data_collator
    )
    trainer.train(resume_from_checkpoint=sys.argv[3] if len(sys.argv) > 3 else None)
    trainer.save_model()
    if trainer.is_world_process_zero():
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        (folder / "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    learn()
    leave_group()
