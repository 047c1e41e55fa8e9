"""What the small models of this repository are pretrained with: a tokenizer, batches, optimizers and a schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


def train_bpe(texts: Iterable[str], vocab_size: int, model_max_length: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE whose digits stand alone, so that numbers can be copied digit by digit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=model_max_length,
        padding_side="left",
    )


def padded(rows: Sequence[tuple[list[int], list[int]]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and labels `(row, longest)`, padded on the right, of rows that only learn their second part."""
    longest = max(len(prompt) + len(told) for prompt, told in rows)
    ids = torch.full((len(rows), longest), pad_token_id)
    labels = torch.full((len(rows), longest), -100)
    for number, (prompt, told) in enumerate(rows):
        end = len(prompt) + len(told)
        ids[number, :end] = torch.tensor(prompt + told)
        labels[number, len(prompt) : end] = torch.tensor(told)
    return ids, labels


def build_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Build Muon for the matrices of the layers and AdamW for the rest; one learning rate serves both.

    Muon (Jordan 2024, scaled as in arXiv 2502.16982) finds the lookups in half the steps that AdamW needs.
    """
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    return [
        torch.optim.Muon(matrices, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, weight_decay=0.0, betas=(0.9, 0.95)),
    ]


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], peak: float, step: int, steps: int) -> None:
    """Warm up for 100 steps, then follow a cosine down to a twentieth."""
    cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = peak * min(1.0, (step + 1) / 100) * cosine
