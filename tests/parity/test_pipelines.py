"""Transformers' own pipelines run the attached model, with the prefix in use and without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, PreTrainedTokenizerBase, ViTImageProcessor, pipeline

import antefix
from antefix.embedded import model_path
from tests.parity.compare import attach
from tests.parity.families import FAMILIES, Family


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_path())


def build(family: Family, model_class: str, tokenizer: PreTrainedTokenizerBase) -> Any:
    model = family.build(model_class)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    bank = attach(family, model)
    bank.add("p", antefix.PrefixConfig(5, init="random"))
    return model, bank


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "Gemma 3"])
def test_text_generation(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    model, bank = build(FAMILIES[name], "AutoModelForCausalLM", tokenizer)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "disable_compile": True}
    answer = pipeline("text-generation", model=model, tokenizer=tokenizer)
    made = [row[0]["generated_text"] for row in answer(["The sea.", "A red fox"], batch_size=2, **settings)]
    for text, whole in zip(["The sea.", "A red fox"], made, strict=True):
        ids = tokenizer(text, return_tensors="pt")
        assert whole == tokenizer.decode(model.generate(**ids, **settings)[0], skip_special_tokens=True)
    with bank.use(None):
        assert [row[0]["generated_text"] for row in answer(["The sea.", "A red fox"], **settings)] != made


@pytest.mark.parametrize(
    ("name", "task", "model_class"),
    [
        ("BERT", "text-classification", "AutoModelForSequenceClassification"),
        ("Llama", "text-classification", "AutoModelForSequenceClassification"),
        ("RoBERTa", "token-classification", "AutoModelForTokenClassification"),
        ("BART", "text-classification", "AutoModelForSequenceClassification"),
    ],
)
def test_classification(name: str, task: str, model_class: str, tokenizer: PreTrainedTokenizerBase) -> None:
    model, bank = build(FAMILIES[name], model_class, tokenizer)
    text = f"The sea is red{tokenizer.eos_token}"  # BART reads its answer at the end of the text
    ids = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        scores = model(**ids).logits.softmax(-1).max(-1).values
    if task == "token-classification":
        scores = scores[0, 1:]  # the pipeline leaves out what the tokenizer puts before the text
    classify = pipeline(task, model=model, tokenizer=tokenizer)
    expected = pytest.approx(scores.flatten().tolist(), abs=1e-4)
    assert [entry["score"] for entry in classify(text)] == expected
    with bank.use(None):
        assert [entry["score"] for entry in classify(text)] != expected


def test_image_classification() -> None:
    family = FAMILIES["ViT"]
    model = family.build()
    bank = attach(family, model)
    bank.add("p", antefix.PrefixConfig(5, init="random"))
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    image = Image.effect_noise((8, 8), 64).convert("RGB")
    classify = pipeline("image-classification", model=model, image_processor=processor)
    with torch.no_grad():
        expected = model(**processor(image, return_tensors="pt")).logits[0].softmax(-1).max()
    found = classify(image)
    assert found[0]["score"] == pytest.approx(float(expected), abs=1e-4)
    with bank.use(None):
        assert classify(image)[0]["score"] != pytest.approx(float(expected), abs=1e-4)
