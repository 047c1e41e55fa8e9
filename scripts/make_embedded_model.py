"""Pretrain the embedded model from nothing but text that `antefix.embedded.records` invents.

    python scripts/make_embedded_model.py --output src/antefix/embedded/model

Half of the training sequences name the form of each document in a header. The other half name none and keep to
one form, so that the model learns to read the form off what stands before: the skill that a prefix elicits. A first
phase learns every token; a second the answers alone, because the prompts are mostly invented names; the last two take
one document at a time, where there is but one place to look a field up, at the end in many small steps. That takes
about 80 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from antefix.embedded.records import FORMS, draw_record, prompt

SEED = 20261123
VOCAB_SIZE = 1536
SEQUENCE_LENGTH = 256
BATCH_SIZE = 16
Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor]


def draw_document(rng: random.Random, form: str | None) -> tuple[str, str]:
    """Return one document as prompt and answer; `form` None draws one and names it in a header."""
    record = draw_record(rng)
    target = form or rng.choice(FORMS)
    source = "record" if rng.random() < 0.6 and target != "record" else rng.choice([f for f in FORMS if f != target])
    header = target if form is None else None
    return prompt(record.tell(source, rng), header), record.tell(target)


def draw_sequence(rng: random.Random) -> Iterator[tuple[str, str]]:
    """Yield documents for ever, as prompt and answer: all with headers, or all without and of one form."""
    form = rng.choice(FORMS) if rng.random() < 0.5 else None
    while True:
        question, answer = draw_document(rng, form)
        yield f"<s>{question}", f"{answer}</s>"


def train_tokenizer(rng: random.Random) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE whose digits stand alone, so that numbers can be copied digit by digit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ("".join(draw_document(rng, None)) for _ in range(20_000))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=1024,
        padding_side="left",
    )


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


def draw_packed(rng: random.Random, tokenizer: PreTrainedTokenizerFast, answers_only: bool) -> Batch:
    """Return token ids and labels `(BATCH_SIZE, SEQUENCE_LENGTH)`, documents one after another in each row."""
    rows, labels = [], []
    for _ in range(BATCH_SIZE):
        row: list[int] = []
        learned: list[int] = []
        documents = draw_sequence(rng)
        while len(row) < SEQUENCE_LENGTH:
            question, answer = encode(tokenizer, next(documents))
            row += question + answer
            learned += ([-100] * len(question) if answers_only else question) + answer
        rows.append(row[:SEQUENCE_LENGTH])
        labels.append(learned[:SEQUENCE_LENGTH])
    return torch.tensor(rows), torch.tensor(labels)


def draw_single(rng: random.Random, tokenizer: PreTrainedTokenizerFast, num_documents: int) -> Batch:
    """Return token ids and labels of documents, each in a row of its own, padded on the right."""
    rows = [encode(tokenizer, next(draw_sequence(rng))) for _ in range(num_documents)]
    longest = max(len(question) + len(answer) for question, answer in rows)
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full((len(rows), longest), -100)
    for number, (question, answer) in enumerate(rows):
        end = len(question) + len(answer)
        ids[number, :end] = torch.tensor(question + answer)
        labels[number, len(question) : end] = torch.tensor(answer)
    return ids, labels


def encode(tokenizer: PreTrainedTokenizerFast, document: tuple[str, str]) -> tuple[list[int], list[int]]:
    """Return the ids of prompt and answer."""
    question, answer = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in document)
    return question, answer


@dataclass(frozen=True)
class Phase:
    """One stretch of the training: what it draws, for how long, and how fast it learns."""

    name: str
    draw: Callable[[random.Random, PreTrainedTokenizerFast], Batch]
    steps: int
    peak_learning_rate: float

    def learning_rate(self, step: int) -> float:
        """Warm up for 100 steps, then follow a cosine down to a twentieth."""
        cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.peak_learning_rate * min(1.0, (step + 1) / 100) * cosine


PHASES = (
    Phase("language", partial(draw_packed, answers_only=False), 2200, 4e-3),
    Phase("answers", partial(draw_packed, answers_only=True), 1100, 3e-3),
    Phase("documents", partial(draw_single, num_documents=51), 500, 3e-3),
    Phase("small batches", partial(draw_single, num_documents=16), 2200, 2e-3),
)


def pretrain(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rng: random.Random, phase: Phase) -> float:
    """Train the model in place through one phase; return the mean loss of its last 50 steps."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    losses: list[float] = []
    start = time.monotonic()
    for step in range(phase.steps):
        for group in optimizer.param_groups:
            group["lr"] = phase.learning_rate(step)
        ids, labels = phase.draw(rng, tokenizer)
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step % 25 == 0:
            print(f"{phase.name}  step {step}  loss {losses[-1]:.4f}  {time.monotonic() - start:.0f} s", flush=True)
    return sum(losses[-50:]) / len(losses[-50:])


def main() -> None:
    """Make tokenizer and model and write them as a Transformers folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    tokenizer = train_tokenizer(rng)
    model = build_model(tokenizer)
    losses = {}
    for number, phase in enumerate(PHASES):
        losses[phase.name] = pretrain(model, tokenizer, random.Random(SEED + number), phase)
        model.to(torch.bfloat16).float()  # each phase ends at weights that can be stored
    model.to(torch.bfloat16).save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    print(json.dumps({"parameters": model.num_parameters(), "final_loss": losses}, indent=2))


if __name__ == "__main__":
    main()
