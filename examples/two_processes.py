"""Two processes train one prefix: the same script under any launcher, and one file in the end.

    torchrun --nproc-per-node 2 examples/two_processes.py
    accelerate launch --multi_gpu --num_processes 2 examples/two_processes.py

Each process takes every other batch and DDP averages their gradients; `accelerate config` can choose FSDP2 instead.
Alone, `python examples/two_processes.py` learns the same from batches twice as large. The first process prints the
loss of each epoch and what was saved.
Takes about a quarter of a minute on 2 cores.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments, set_seed

import antefix
from antefix.embedded import model_path
from antefix.embedded.records import draw_examples, prompt
from antefix.training import PrefixTrainer
from antefix.training.examples import Example
from antefix.training.launch import leave_group
from antefix.training.tokens import TextPreprocessor

BATCH_SIZE = 16


def main() -> None:
    """Train on 160 records."""
    set_seed(0)
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    preprocessor = TextPreprocessor(tokenizer, tokenizer, is_encoder_decoder=False)
    rows = [preprocessor(Example(prompt(r["source"]), r["target"])) for r in draw_examples("headline", 160, seed=0)]
    bank = antefix.attach(model)
    bank.add("headline", antefix.PrefixConfig(num_virtual_tokens=16), tokenizer=tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            num_train_epochs=4,
            learning_rate=5e-3,
            report_to="none",
            save_strategy="no",
            logging_strategy="epoch",
            disable_tqdm=True,
            ddp_find_unused_parameters=False,
            use_cpu=not torch.accelerator.is_available(),
        )
        args.per_device_train_batch_size = BATCH_SIZE // args.world_size
        trainer = PrefixTrainer(bank, "headline", args=args, train_dataset=rows, data_collator=preprocessor.collate)
        trainer.train()
        trainer.save_model()
        if trainer.is_world_process_zero():
            losses = [f"{log['loss']:.5f}" for log in trainer.state.log_history if "loss" in log]
            print(f"{args.world_size} process(es), loss by epoch: {', '.join(losses)}")
            print("saved:", ", ".join(path.name for path in Path(folder).iterdir()))


if __name__ == "__main__":
    main()
    leave_group()
