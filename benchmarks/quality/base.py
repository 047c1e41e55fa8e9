"""The base model of the study: a Llama of 5.5 million parameters, pretrained here from the shared data and cached.

It reads references of E2E without their meaning representations, articles of WikiText-2, and registers of invented
people with questions about them, and so knows how restaurants are spoken of, some English, and how to look facts up in
its context; what a prefix is to teach it, it has never seen. The last tenth of WikiText-2 is kept for measuring what it
forgets.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from scripts.pretraining import build_optimizers, set_learning_rate, train_bpe
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.quality.registers import Register

SHARED = Path(os.environ.get("ANTEFIX_SHARED", Path(__file__).parents[3] / "shared"))
CACHE = Path(__file__).parent / "cache"
SEED = 20261125
VOCAB_SIZE = 4096
POSITIONS = 512
ROWS = {"registers": 3, "e2e": 2, "wikitext": 1}
"""How many rows of a batch are of what kind."""
STEPS = 2200
PEAK_LEARNING_RATE = 2e-3


def base_folder() -> Path:
    """Return the folder of the base model, which is pretrained first where there is none: half an hour on two cores."""
    folder = CACHE / "base"
    if not (folder / "pretraining.json").is_file():
        torch.manual_seed(SEED)
        tokenizer = train_tokenizer()
        model = build_model(tokenizer)
        report = pretrain(model, tokenizer)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "pretraining.json").write_text(json.dumps(report, indent=1) + "\n")
    return folder


def wikitext() -> str:
    """Return the text of WikiText-2 that there is."""
    return "".join(
        gzip.decompress((SHARED / "data" / "wikitext2" / f"{part}.txt.gz").read_bytes()).decode()
        for part in ("valid", "test")
    )


def general_text() -> str:
    """Return English that the base has not read: the last tenth of WikiText-2."""
    text = wikitext()
    return text[len(text) * 9 // 10 :]


def references() -> list[str]:
    """Return the references of E2E's training split, without what they refer to."""
    lines = gzip.decompress((SHARED / "data" / "e2e_nlg" / "train.jsonl.gz").read_bytes()).decode().splitlines()
    return [json.loads(line)["ref"] for line in lines]


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, whose digits stand alone, on all three kinds of text."""
    rng = random.Random(SEED)
    registers = (Register.draw(rng, 8).text(rng) for _ in range(1000))
    return train_bpe([wikitext(), *references()[:20_000], *registers], VOCAB_SIZE, model_max_length=POSITIONS)


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


Rows = Iterator[tuple[list[int], list[int]]]
"""Token ids and labels of rows of `POSITIONS` tokens."""


def register_rows(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Rows:
    """Yield registers, of which nothing is learned, and what is written about them, of which all is."""
    while True:
        register = Register.draw(rng, rng.randint(2, 12))
        document = tokenizer(register.text(rng))["input_ids"]
        sections = tokenizer(register.sections(rng, 25), add_special_tokens=False)["input_ids"]
        ids = (document + sections)[:POSITIONS]
        yield _filled(ids, [-100] * len(document) + ids[len(document) :], tokenizer)


def packed_rows(tokenizer: PreTrainedTokenizerFast, texts: list[str], rng: random.Random) -> Rows:
    """Yield rows full of texts, each between the special tokens, in a new order every time they have been read."""
    encoded = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]
    rest: list[int] = []
    while True:
        rng.shuffle(encoded)
        for ids in encoded:
            rest += ids
            while len(rest) >= POSITIONS:
                row, rest = rest[:POSITIONS], rest[POSITIONS:]
                yield row, row


def pretrain(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Train the model in place, in bf16 with fp32 master weights; return what it came to."""
    rng = random.Random(SEED)
    articles = wikitext()[: -len(general_text())].split("\n = ")
    sources: dict[str, Rows] = {
        "registers": register_rows(tokenizer, rng),
        "e2e": packed_rows(tokenizer, references(), rng),
        "wikitext": packed_rows(tokenizer, articles, rng),
    }
    optimizers = build_optimizers(model)
    history: list[list[float]] = []
    start = time.monotonic()
    for step in range(STEPS):
        set_learning_rate(optimizers, PEAK_LEARNING_RATE, step, STEPS)
        rows = [next(sources[kind]) for kind, number in ROWS.items() for _ in range(number)]
        ids, labels = (torch.tensor(part) for part in zip(*rows, strict=True))
        losses = _losses(model, ids, labels)
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        history.append([part.mean().item() for part in losses.split(list(ROWS.values()))])
        if (step + 1) % 100 == 0:
            means = _means(history[-100:])
            print(f"step {step + 1}  {means}  {time.monotonic() - start:.0f} s", flush=True)
    return {**_means(history[-100:]), "seconds": time.monotonic() - start, "parameters": model.num_parameters()}


def _losses(model: LlamaForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    """Return the mean loss of each row."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none"
    )
    return losses.sum(1) / (labels[:, 1:] != -100).sum(1)


def _means(history: list[list[float]]) -> dict[str, float]:
    columns = zip(*history, strict=True)
    return {kind: round(sum(column) / len(history), 4) for kind, column in zip(ROWS, columns, strict=True)}


def _filled(ids: list[int], labels: list[int], tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    gap = POSITIONS - len(ids)
    return ids + [tokenizer.pad_token_id] * gap, labels + [-100] * gap
