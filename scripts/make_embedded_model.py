"""Pretrain the embedded model from nothing but text that `antefix.embedded.records` invents.

    python -m scripts.make_embedded_model --output src/antefix/embedded/model

Each row is one document: a text and what it becomes in another form. Two thirds name that form in a header; the
others leave it open, which is the choice that a prefix makes. Only the answers are learned, because the prompts are
mostly invented names, and the batches are small, because what must be found is where in the prompt each field stands,
and that takes many steps rather than many tokens. That takes about half an hour on two cores. The tokenizer comes out
the same everywhere; the weights differ with the rounding of a machine, and tell the forms equally well.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
from scripts.pretraining import build_optimizers, padded, set_learning_rate, train_bpe
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from antefix.embedded.records import FORMS, draw_record, prompt

SEED = 20261123
VOCAB_SIZE = 1536
BATCH_SIZE = 16
STEPS = 9000
PEAK_LEARNING_RATE = 2e-3


def draw_document(rng: random.Random) -> tuple[str, str]:
    """Return one document as prompt and answer, each with its special token."""
    record = draw_record(rng)
    target = rng.choice(FORMS)
    source = "record" if rng.random() < 0.6 and target != "record" else rng.choice([f for f in FORMS if f != target])
    header = target if rng.random() < 2 / 3 else None
    return f"<s>{prompt(record.tell(source, rng), header)}", f"{record.tell(target)}</s>"


def train_tokenizer(rng: random.Random) -> PreTrainedTokenizerFast:
    """Train the tokenizer on documents."""
    return train_bpe(("".join(draw_document(rng)) for _ in range(20_000)), VOCAB_SIZE, model_max_length=1024)


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Build the untrained model."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def draw_batch(rng: random.Random, tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and labels `(BATCH_SIZE, longest)`, padded on the right; prompts carry no label."""
    documents = [draw_document(rng) for _ in range(BATCH_SIZE)]
    rows = [
        (
            tokenizer(question, add_special_tokens=False)["input_ids"],
            tokenizer(answer, add_special_tokens=False)["input_ids"],
        )
        for question, answer in documents
    ]
    return padded(rows, tokenizer.pad_token_id)


def pretrain(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> float:
    """Train the model in place; return the mean loss of the last 100 steps."""
    optimizers = build_optimizers(model)
    losses: list[float] = []
    start = time.monotonic()
    for step in range(STEPS):
        set_learning_rate(optimizers, PEAK_LEARNING_RATE, step, STEPS)
        ids, labels = draw_batch(rng, tokenizer)
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            mean = sum(losses[-100:]) / 100
            print(f"step {step + 1}  loss {mean:.4f}  {time.monotonic() - start:.0f} s", flush=True)
    return sum(losses[-100:]) / len(losses[-100:])


def main() -> None:
    """Make tokenizer and model and write them as a Transformers folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    tokenizer = train_tokenizer(rng)
    model = build_model(tokenizer)
    final_loss = pretrain(model, tokenizer, rng)
    model.bfloat16().save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    print(json.dumps({"parameters": model.num_parameters(), "final_loss": final_loss}, indent=2))


if __name__ == "__main__":
    main()
