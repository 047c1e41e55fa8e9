"""Pretrain the base model of the study, a Llama of 5.5 million parameters, from the shared data.

    python -m benchmarks.quality.pretraining

That takes 40 minutes on two cores, or 75 on one, and the weights differ with the rounding of a machine. They are
part of the repository, in `base`, so that a method that is added later is measured on the very same model.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from scripts.pretraining import build_optimizers, set_learning_rate
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.quality.corpus import POSITIONS, VOCAB_SIZE, Corpus, train_tokenizer

BASE = Path(__file__).parent / "base"
SEED = 20261125


@dataclass(frozen=True)
class Stage:
    """A part of the pretraining; `rotation` says which kind of text each step reads, over and over."""

    rotation: tuple[str, ...]
    steps: int
    peak_learning_rate: float


STAGES = (
    Stage(("registers", "words", "e2e", "registers", "forms", "words", "wikitext"), 4200, 2e-3),
    Stage(("registers", "registers", "registers", "words", "registers", "registers", "e2e", "wikitext"), 800, 1.5e-3),
)
"""First what words are and to copy from the context; then, which takes that for granted, to look up in it."""


def main() -> None:
    """Train tokenizer and model and write them, in bf16, with the figures of the last stage."""
    rngs = [random.Random(SEED + number) for number in range(len(STAGES))]
    tokenizer = train_tokenizer(rngs[0])
    torch.manual_seed(SEED)
    model = build_model(tokenizer)
    started = time.monotonic()
    for stage, rng in zip(STAGES, rngs, strict=True):
        losses = pretrain(model, Corpus(tokenizer, rng), stage)
    report = {
        "parameters": model.num_parameters(),
        "seconds": round(time.monotonic() - started),
        "threads": torch.get_num_threads(),
        "losses": losses,
    }
    model.bfloat16().save_pretrained(BASE)
    tokenizer.save_pretrained(BASE)
    (BASE / "pretraining.json").write_text(json.dumps(report, indent=1) + "\n")


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Build the untrained model."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def pretrain(model: LlamaForCausalLM, corpus: Corpus, stage: Stage) -> dict[str, float]:
    """Train the model in place, in bf16 with fp32 master weights; return the last losses by kind of text."""
    optimizers = build_optimizers(model)
    losses: dict[str, list[float]] = {kind: [] for kind in stage.rotation}
    model.train()
    start = time.monotonic()
    for step in range(stage.steps):
        set_learning_rate(optimizers, stage.peak_learning_rate, step, stage.steps)
        kind = stage.rotation[step % len(stage.rotation)]
        ids, labels = corpus.batch(kind, step / stage.steps)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses[kind].append(loss.item())
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}  {_last(losses)}  {time.monotonic() - start:.0f} s", flush=True)
    return _last(losses)


def _last(losses: dict[str, list[float]]) -> dict[str, float]:
    """Return the mean of the last ten batches of each kind."""
    return {kind: round(sum(values[-10:]) / len(values[-10:]), 4) for kind, values in losses.items()}


if __name__ == "__main__":
    main()
