"""A prefix beside a LoRA adapter of PEFT: trained together, saved apart, used one without the other.

On antefix's embedded model, a LoRA adapter of rank 4 and a prefix of 16 tokens learn together to write headlines from
records. Prints the share of held-out records with the right headline for the base, for each alone, and for both, after
they were loaded again from their own files. Takes about a minute on 2 cores.

    python examples/prefix_beside_lora.py
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TrainingArguments

import antefix
from antefix.embedded import model_path
from antefix.embedded.records import draw_examples, prompt
from antefix.training import PrefixTrainer
from antefix.training.data import Collator, Example, ExampleTokenizer
from antefix.training.evaluation import exact_match

tokenizer = AutoTokenizer.from_pretrained(model_path())
encoder = ExampleTokenizer(tokenizer, tokenizer, is_encoder_decoder=False, max_length=256)


def load_base() -> PreTrainedModel:
    """Load the embedded model, in fp32."""
    return AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)


def train(examples: list[Example], folder: Path) -> None:
    """Train adapter and prefix together, and save each."""
    model = get_peft_model(load_base(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    bank = antefix.attach(model)
    # What is trainable already, which are the adapter's weights, stays so.
    bank.add("headline", antefix.PrefixConfig(num_virtual_tokens=16), tokenizer=tokenizer, freeze_base=False)
    trainer = PrefixTrainer(
        bank,
        "headline",
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=16,
            num_train_epochs=6,
            learning_rate=5e-3,
            report_to="none",
            save_strategy="no",
            logging_steps=25,
            disable_tqdm=True,
        ),
        train_dataset=[encoder.encode(example) for example in examples],
        data_collator=Collator(tokenizer.pad_token_id),
    )
    trainer.train()
    trainer.save_model()


def main() -> None:
    """Train on 200 records and score on 50 others."""
    rows = draw_examples("headline", 250, seed=0)
    examples = [Example(prompt(row["source"]), row["target"]) for row in rows]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(examples[:200], folder)
        print("saved:", ", ".join(sorted(path.name for path in folder.iterdir() if path.suffix == ".safetensors")))
        model = PeftModel.from_pretrained(load_base(), folder).eval()
        bank = antefix.attach(model)
        bank.load(folder / "prefix.safetensors", "headline")
    for label, prefix, adapter in (
        ("base", None, model.disable_adapter()),
        ("adapter alone", None, contextlib.nullcontext()),
        ("prefix alone", "headline", model.disable_adapter()),
        ("both", "headline", contextlib.nullcontext()),
    ):
        with bank.use(prefix), adapter:
            print(f"right headlines, {label}: {exact_match(bank.model, encoder, examples[200:]):.0%}")


if __name__ == "__main__":
    main()
