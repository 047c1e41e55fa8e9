"""Prefixes beside a LoRA adapter of PEFT: the adapter carries one skill, a prefix of a few kilobytes adds another.

On antefix's embedded model, a LoRA adapter learns to write headlines from records. It is kept as it is, and beside it a
prefix learns to write letters instead. Prints the share of held-out records that get the right headline or letter, from
the base, from the adapter, and from the adapter with the prefix, in one batch in the end, where each row has its own
choice; and the size of each file. Takes about a minute on 2 cores.

    python examples/prefix_beside_lora.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Trainer, TrainingArguments

import antefix
from antefix.embedded import model_path
from antefix.embedded.records import draw_examples, prompt
from antefix.training import PrefixTrainer
from antefix.training.data import Collator, Example, ExampleTokenizer
from antefix.training.evaluation import answers, exact_match

tokenizer = AutoTokenizer.from_pretrained(model_path())
encoder = ExampleTokenizer(tokenizer, tokenizer, is_encoder_decoder=False, max_length=256)


def draw(form: str, count: int, seed: int) -> list[Example]:
    """Draw records, and each told in a form."""
    return [Example(prompt(row["source"]), row["target"]) for row in draw_examples(form, count, seed)]


def settings(examples: list[Example], folder: Path) -> dict[str, Any]:
    """Return what a trainer needs to learn from examples."""
    return {
        "args": TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=16,
            num_train_epochs=8,
            learning_rate=5e-3,
            lr_scheduler_type="cosine",
            report_to="none",
            save_strategy="no",
            logging_steps=50,
            disable_tqdm=True,
        ),
        "train_dataset": [encoder.encode(example) for example in examples],
        "data_collator": Collator(tokenizer.pad_token_id),
    }


def score(label: str, model: PreTrainedModel) -> None:
    """Print the share of right headlines and of right letters."""
    shares = (f"{form} {exact_match(model, encoder, draw(form, 40, seed=1)):.0%}" for form in ("headline", "letter"))
    print(f"{label:<22}", ", ".join(shares))


def main() -> None:
    """Train the adapter, then the prefix beside it."""
    base = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    score("base", base)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Trainer(model=model, **settings(draw("headline", 200, seed=0), folder)).train()
        score("adapter", base)

        bank = antefix.attach(model)
        bank.add("letter", antefix.PrefixConfig(num_virtual_tokens=16), tokenizer=tokenizer)
        trainer = PrefixTrainer(bank, "letter", model=model, **settings(draw("letter", 200, seed=0), folder))
        trainer.train()
        score("adapter and prefix", base)
        trainer.save_model()
        for path in sorted(folder.glob("*.safetensors")):
            print(f"{path.name:<26} {path.stat().st_size / 1000:>5.0f} kB")

    (record,) = draw("headline", 1, seed=2)
    with bank.use([None, "letter"]):
        for written in answers(base, encoder, [record.prompt] * 2, max_new_tokens=60):
            print(f"  {written}")


if __name__ == "__main__":
    main()
