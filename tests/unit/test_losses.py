"""Scores of a batch are the scores of its rows."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

from antefix.embedded import model_path
from antefix.training.examples import Example
from antefix.training.generation import answers
from antefix.training.losses import answer_losses
from antefix.training.tokens import TextPreprocessor
from tests.conftest import build_model

EXAMPLES = [Example("The sea", "a boat"), Example("name: Ada | job: baker | town: Elmton", "bread and more bread")]


@pytest.mark.parametrize("name", ["llama", "bart", "t5", "gpt2"])
def test_a_batch_scores_as_its_rows_alone(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    model = build_model(name)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    preprocessor = TextPreprocessor(tokenizer, tokenizer, model.config.is_encoder_decoder)
    prompts = [example.prompt for example in EXAMPLES]
    together = answers(model, preprocessor, prompts, max_new_tokens=8)
    assert together == [answers(model, preprocessor, [prompt], max_new_tokens=8)[0] for prompt in prompts]
    rows = [preprocessor(example) for example in EXAMPLES]
    together_losses, alone = answer_losses(model, preprocessor, rows), []
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        if model.config.is_encoder_decoder:
            logits, targets = model(input_ids=ids, labels=labels).logits[0], labels[0]
        else:
            logits, targets = model(input_ids=ids).logits[0, :-1], labels[0, 1:]
        loss = cross_entropy(logits, targets, ignore_index=-100, reduction="sum").item()
        alone.append([loss, int((targets != -100).sum())])
    assert together_losses.tolist() == [pytest.approx(row, rel=1e-5) for row in alone]
