"""A prefix beside a LoRA adapter of PEFT: trained together, saved apart, loaded again, and chosen row by row.

On antefix's embedded model, a small LoRA adapter and a prefix learn together to write headlines from records. Prints
what was saved, and the share of held-out records with the right headline for the base, for the adapter alone and for
both, after each was loaded from its own file; then one batch in which only the second row uses the prefix.
Takes about 20 seconds on 2 cores.

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
from antefix.training.examples import Example
from antefix.training.generation import answers
from antefix.training.metrics import exact_match
from antefix.training.tokens import TextPreprocessor

tokenizer = AutoTokenizer.from_pretrained(model_path())
preprocessor = TextPreprocessor(tokenizer, tokenizer, is_encoder_decoder=False)


def load_base() -> PreTrainedModel:
    """Load the embedded model, in fp32."""
    return AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)


def train(examples: list[Example], folder: Path) -> None:
    """Train adapter and prefix together, and save each."""
    model = get_peft_model(load_base(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
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
        train_dataset=[preprocessor(example) for example in examples],
        data_collator=preprocessor.collate,
    )
    trainer.train()
    trainer.save_model()


def main() -> None:
    """Train on 200 records and score on 50 others."""
    torch.manual_seed(0)
    examples = [Example(prompt(row["source"]), row["target"]) for row in draw_examples("headline", 250, seed=0)]
    held_out = examples[200:]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(examples[:200], folder)
        for path in sorted(folder.glob("*.safetensors")):
            print(f"saved {path.name}: {path.stat().st_size / 1000:.0f} kB")
        model = PeftModel.from_pretrained(load_base(), folder).eval()
        bank = antefix.attach(model)
        bank.load(folder / "prefix.safetensors", "headline")

    most = max(len(preprocessor.tokenize(example).answer) for example in held_out)
    for label, prefix, adapter in (
        ("base", None, model.disable_adapter()),
        ("adapter", None, contextlib.nullcontext()),
        ("adapter and prefix", "headline", contextlib.nullcontext()),
    ):
        with bank.use(prefix), adapter:
            given = answers(bank.model, preprocessor, [example.prompt for example in held_out], most)
        right = exact_match(given, [[example.answer] for example in held_out]).value
        print(f"right headlines, {label}: {right:.0%}")
    with bank.use([None, "headline"]):
        for written in answers(bank.model, preprocessor, [held_out[0].prompt] * 2, most):
            print(f"  {written}")


if __name__ == "__main__":
    main()
