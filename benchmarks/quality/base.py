"""The base model of the study: a Llama of 5.5 million parameters, pretrained here from the shared data and cached."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scripts.pretraining import build_optimizers, set_learning_rate
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.quality.corpus import POSITIONS, VOCAB_SIZE, Corpus, train_tokenizer

CACHE = Path(__file__).parent / "cache"
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


def base_folder() -> Path:
    """Return the folder of the base model; what was not pretrained yet is, which takes 40 minutes on two cores."""
    folder = CACHE / "base"
    for number, stage in enumerate(STAGES):
        before, folder = folder, CACHE / ("base" if stage is STAGES[-1] else f"stage-{number}")
        if (folder / "pretraining.json").is_file():
            continue
        torch.manual_seed(SEED + number)
        rng = random.Random(SEED + number)
        if number == 0:
            tokenizer = train_tokenizer(rng)
            model = build_model(tokenizer)
        else:
            tokenizer = AutoTokenizer.from_pretrained(before)
            model = LlamaForCausalLM.from_pretrained(before)
        report = pretrain(model, Corpus(tokenizer, rng), stage)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "pretraining.json").write_text(json.dumps(report, indent=1) + "\n")
    return folder


def pretraining() -> dict[str, Any]:
    """Return the figures of the pretraining, seconds of all stages together."""
    folders = [base_folder(), *(CACHE / f"stage-{number}" for number in range(len(STAGES) - 1))]
    reports = [json.loads((folder / "pretraining.json").read_text()) for folder in folders]
    return {**reports[0], "seconds": sum(report["seconds"] for report in reports)}


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
    return {**_last(losses), "seconds": time.monotonic() - start, "parameters": model.num_parameters()}


def _last(losses: dict[str, list[float]]) -> dict[str, float]:
    """Return the mean of the last ten batches of each kind."""
    return {kind: round(sum(values[-10:]) / len(values[-10:]), 4) for kind, values in losses.items()}
