"""A PEFT prefix-tuning checkpoint, sped up: the same model, the same answers, another attention.

PEFT trains a prefix of 768 tokens for a few steps on antefix's embedded model and saves it. The checkpoint is loaded
twice, and one of the two models is accelerated. Both answer the same 16 prompts and take the same training step, in
turn; the script prints how far their logits lie apart, whether the answers are equal, and the median seconds of each.
Takes about 20 seconds on 2 cores.

    python examples/accelerate_peft.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable

import torch
import transformers
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BatchEncoding, PreTrainedModel

from antefix.embedded import model_path
from antefix.embedded.records import draw_examples
from antefix.interop.peft import accelerate

NUM_VIRTUAL_TOKENS = 768
NUM_PROMPTS = 16
ROUNDS = 5

tokenizer = AutoTokenizer.from_pretrained(model_path())
tokenizer.padding_side = "left"


def load_base() -> PreTrainedModel:
    """Load the embedded model, in fp32."""
    return AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()


def draw_batch(seed: int, with_answers: bool) -> BatchEncoding:
    """Draw records, each with its headline behind it or without."""
    examples = draw_examples("headline", NUM_PROMPTS, seed=seed)
    texts = [example["source"] + "\n" + (example["target"] if with_answers else "") for example in examples]
    return tokenizer(texts, return_tensors="pt", padding=True)


def train_a_checkpoint(folder: str) -> None:
    """Let PEFT itself train a prefix for a few steps and save it."""
    torch.manual_seed(0)
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=NUM_VIRTUAL_TOKENS)
    model = get_peft_model(load_base(), config)
    optimizer = torch.optim.AdamW(model.prompt_encoder.parameters(), lr=1e-2)
    for step in range(5):
        train_step(model, draw_batch(step, with_answers=True))
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


def train_step(model: PeftModel, batch: BatchEncoding) -> float:
    """Run one forward and backward and return the loss."""
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)  # which PEFT does not count by itself
    loss = model(**batch, position_ids=positions, labels=labels).loss
    loss.backward()
    return loss.item()


def answer(model: PeftModel, batch: BatchEncoding) -> torch.Tensor:
    """Answer every prompt with 32 tokens."""
    return model.generate(**batch, max_new_tokens=32, min_new_tokens=32, do_sample=False)


def median_seconds(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Time calls in turn, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(1 + ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def main() -> None:
    """Train, load twice, accelerate one, compare."""
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT asks Transformers by an old name
    with tempfile.TemporaryDirectory() as folder:
        train_a_checkpoint(folder)
        models = {name: PeftModel.from_pretrained(load_base(), folder) for name in ("PEFT", "accelerated")}
    accelerate(models["accelerated"])

    prompts, examples = draw_batch(100, with_answers=False), draw_batch(101, with_answers=True)
    alone = prompts["input_ids"][:, -8:]
    with torch.no_grad():
        logits = {name: model(input_ids=alone).logits for name, model in models.items()}
    difference = (logits["PEFT"] - logits["accelerated"]).abs().max() / logits["PEFT"].abs().max()
    answers = {name: answer(model, prompts) for name, model in models.items()}
    losses = {name: train_step(model, examples) for name, model in models.items()}
    print(f"largest difference of logits, of the largest logit: {difference:.1e}")
    print(f"answers equal: {torch.equal(answers['PEFT'], answers['accelerated'])}")
    print(f"losses: {', '.join(f'{name} {loss:.6f}' for name, loss in losses.items())}\n")

    work = {
        "answer 16 prompts with 32 tokens": lambda model: answer(model, prompts),
        "one training step on 16 examples": lambda model: train_step(model, examples),
    }
    print(f"{'median of ' + str(ROUNDS) + ', in turn':<34} {'PEFT':>8} {'accelerated':>12}")
    for name, run in work.items():
        taken = median_seconds({key: lambda run=run, model=model: run(model) for key, model in models.items()})
        print(f"{name:<34} {taken['PEFT']:>6.2f} s {taken['accelerated']:>10.2f} s")


if __name__ == "__main__":
    main()
