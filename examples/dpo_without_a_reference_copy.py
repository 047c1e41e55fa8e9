"""Preference training with TRL's DPOTrainer, whose reference is the same model with its prefix off.

DPO compares the model with one that stays as it was, and TRL loads a second copy for that. Where a prefix is all that
is trained, the reference is the base that is there already: `PrefixTrainer` hands it over without being asked. Here a
prefix learns to prefer headlines to plain sentences. Prints the bytes of parameters that model and reference hold, how
much likelier the preferred answer is than the other, before and after, and what the base still thinks. Takes about
half a minute on 2 cores.

    python examples/dpo_without_a_reference_copy.py
"""

from __future__ import annotations

import tempfile

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from trl import DPOConfig, DPOTrainer

import antefix
from antefix.embedded import model_path
from antefix.embedded.records import draw_examples, prompt
from antefix.training import PrefixTrainer
from antefix.training.data import Example, ExampleTokenizer
from antefix.training.evaluation import loss_per_token


class PrefixDPOTrainer(PrefixTrainer, DPOTrainer):
    """TRL's trainer, which trains and saves a prefix."""


def draw_preferences(count: int, seed: int) -> list[dict[str, str]]:
    """Draw records with a headline, which is preferred, and a plain sentence about the same fields."""
    pairs = zip(draw_examples("headline", count, seed), draw_examples("plain", count, seed), strict=True)
    return [{"prompt": prompt(a["source"]), "chosen": a["target"], "rejected": b["target"]} for a, b in pairs]


def margin(model: PreTrainedModel, encoder: ExampleTokenizer, rows: list[dict[str, str]]) -> float:
    """Return how much likelier, in nats a token, the preferred answers are than the others."""
    losses = {
        side: loss_per_token(
            model, [encoder.encode(Example(row["prompt"], row[side])) for row in rows], pad_token_id=0, batch_size=16
        )
        for side in ("chosen", "rejected")
    }
    return losses["rejected"] - losses["chosen"]


def main() -> None:
    """Train on 96 preferences and measure on 32 others."""
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    encoder = ExampleTokenizer(tokenizer, tokenizer, is_encoder_decoder=False, max_length=256)
    held_out = draw_preferences(32, seed=1)

    bank = antefix.attach(model)
    bank.add("headlines", antefix.PrefixConfig(num_virtual_tokens=16), tokenizer=tokenizer)
    before = margin(model, encoder, held_out)
    with tempfile.TemporaryDirectory() as folder:
        trainer = PrefixDPOTrainer(
            bank,
            "headlines",
            args=DPOConfig(
                output_dir=folder,
                per_device_train_batch_size=8,
                num_train_epochs=4,
                learning_rate=5e-3,
                report_to="none",
                save_strategy="no",
                bf16=False,
                logging_steps=12,
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(draw_preferences(96, seed=0)),
            processing_class=tokenizer,
        )
        for name, module in (("model", trainer.model), ("reference", trainer.ref_model)):
            print(f"parameters of the {name}: {sum(p.numel() * p.element_size() for p in module.parameters()):,} bytes")
        trainer.train()
    print(f"preferred, in nats a token: {before:+.2f} before, {margin(model, encoder, held_out):+.2f} after", end="")
    with bank.use(None):
        print(f", {margin(model, encoder, held_out):+.2f} without the prefix")


if __name__ == "__main__":
    main()
