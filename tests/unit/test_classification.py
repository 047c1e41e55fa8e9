"""Choosing labels: which modules a prefix trains beside it, whose labels count, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

import antefix
from antefix.embedded import model_path
from antefix.errors import DataError
from antefix.training import split
from antefix.training.base import load_base
from antefix.training.classification import Classification, labels_of
from antefix.training.evaluation import score
from antefix.training.examples import Example
from antefix.training.load import load_task
from antefix.training.recipe import Recipe
from antefix.training.room import Room
from antefix.training.systems import shared_labels
from antefix.training.tokens import TokenizedExamples, Tokens

EXAMPLES = [Example("The sea is blue", "b"), Example("A boat", "a"), Example("Bread and more bread", "c")]
SIZES: dict[str, dict[str, Any]] = {
    "Bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "ModernBert": {},
    "Llama": {},
    "Bart": {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0},
}
COMMON = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def save(folder: Path, model_class: str, **settings: Any) -> str:
    """Save a small model with the embedded one's tokenizer and return its folder."""
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    family = next(name for name in SIZES if model_class.startswith(name))
    sizes = SIZES[family] if family == "Bart" else COMMON | SIZES[family]
    config = getattr(transformers, f"{family}Config")(
        **{"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **sizes, **settings}
    )
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:  # freshly initialised weights are so small that the text makes no difference
            parameter.data.mul_(8.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("model_class", "heads"),
    [
        ("BertForMaskedLM", ("classifier", "bert.pooler.dense")),  # its checkpoint has no pooler
        ("BertModel", ("classifier",)),
        ("BertForSequenceClassification", ("classifier",)),
        ("ModernBertModel", ("head", "classifier")),
        ("LlamaForCausalLM", ("score",)),
        ("BartForConditionalGeneration", ("classification_head",)),  # it reads the token that ends a text
    ],
)
def test_a_prefix_trains_all_that_no_checkpoint_has(tmp_path: Path, model_class: str, heads: tuple[str, ...]) -> None:
    """What is drawn at random must be in the prefix's file: so another process, another draw, gives the same scores."""
    source = save(tmp_path, model_class)
    scores = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        task = Classification.load(source, ["a", "b", "c"])
        assert task.heads == heads
        bank = task.attach()
        examples = [Example(f"{example.prompt}</s>", example.answer) for example in EXAMPLES]
        part = TokenizedExamples(examples, [task.preprocessor.tokenize(example) for example in examples])
        task.check_room(Room(bank), part)
        if seed == 1:
            bank.add("p", task.configure(antefix.PrefixConfig(4, init="random")))
            bank.save("p", tmp_path / "p.safetensors")
        else:
            bank.load(tmp_path / "p.safetensors", name="p")
        scores.append(score(task, bank, "p", part, task.metrics, batch_size=2))
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


@pytest.mark.parametrize("model_class", ["BertForSequenceClassification", "LlamaForSequenceClassification"])
def test_a_batch_scores_as_transformers_scores_each_text(tmp_path: Path, model_class: str) -> None:
    # Llama has no padding of its own, and looks for where a text ends by it.
    pad = {} if model_class.startswith("Bert") else {"pad_token_id": None}
    task = Classification.load(save(tmp_path, model_class, num_labels=3, **pad), ["a", "b", "c"])
    part = TokenizedExamples(EXAMPLES, [task.preprocessor.tokenize(example) for example in EXAMPLES])
    rows = part.features(task.preprocessor)
    alone = torch.cat([task.model(torch.tensor([row["input_ids"]])).logits for row in rows]).detach()
    right = torch.tensor([row["labels"] for row in rows])
    assert right.tolist() == [1, 0, 2]
    scores = score(task, task.attach(), None, part, task.metrics, batch_size=3)
    assert scores["loss"] == pytest.approx(cross_entropy(alone, right).item(), rel=1e-5)
    assert scores["accuracy"] == (alone.argmax(1) == right).double().mean().item()


def test_a_base_with_towers_keeps_its_padding_where_its_text_does(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config={**COMMON, "vocab_size": len(tokenizer), "num_key_value_heads": 2, "head_dim": 8},
        vision_config={**vision, "image_size": 16, "patch_size": 4},
    )
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    task = Classification.load(str(tmp_path), ["a", "b", "c"])
    assert task.heads == ("score",)
    rows = [task.preprocessor.features(task.preprocessor.tokenize(example)) for example in EXAMPLES]
    for together, row in zip(task.logits(rows), rows, strict=True):
        torch.testing.assert_close(together, task.logits([row])[0])


def test_labels_that_the_base_knows_keep_its_numbers(tmp_path: Path) -> None:
    names = {0: "c", 1: "a", 2: "d", 3: "b"}
    source = save(tmp_path, "BertForSequenceClassification", id2label=names)
    task = Classification.load(source, ["a", "b", "c"])
    assert task.metadata == {"labels": ["c", "a", "d", "b"]}
    assert task.preprocessor.tokenize(Example("x", "b")).answer == [3]
    head = transformers.AutoModelForSequenceClassification.from_pretrained(source).classifier.weight
    assert torch.equal(task.model.classifier.weight, head)
    assert Classification.load(source, ["a", "new"]).metadata == {"labels": ["a", "new"]}


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])
def test_a_base_of_another_problem_trains_by_the_loss_that_scores_it(tmp_path: Path, problem_type: str) -> None:
    source = save(tmp_path, "BertForSequenceClassification", num_labels=3, problem_type=problem_type)
    task = Classification.load(source, ["a", "b", "c"])
    part = TokenizedExamples(EXAMPLES, [task.preprocessor.tokenize(example) for example in EXAMPLES])
    scores = score(task, task.attach(), None, part, ["loss"], batch_size=3)
    trained = task.model(**task.preprocessor.collate(part.features(task.preprocessor))).loss
    assert trained.item() == pytest.approx(scores["loss"], rel=1e-5)


def test_labels_are_sorted_as_what_they_are() -> None:
    assert labels_of([Example("", str(n)) for n in (10, 2, 1, 2)]) == ["1", "2", "10"]
    assert labels_of([Example("", name) for name in ("spam", "10", "ham")]) == ["10", "ham", "spam"]
    alike = [text for number in range(1, 21) for text in (f"0{number}", f"{number}")]
    assert labels_of([Example("", label) for label in alike]) == alike, "in every process"
    assert labels_of([Example("", "1" * 5000), Example("", "2")]) == ["1" * 5000, "2"]


def test_a_label_of_one_example_is_trained() -> None:
    trained, held_out = ([Example("", label) for label in labels] for labels in (["a", "b", "a"], ["b", "c", "a"]))
    kept = split._with_every_label(trained, held_out)
    assert [[example.answer for example in part] for part in kept] == [["a", "b", "a", "c"], ["b", "a"]]
    with pytest.raises(DataError, match="each of the 2 examples to hold out has a label that no other has"):
        split._with_every_label(trained, [Example("", "c"), Example("", "d")])


def test_what_is_no_classification_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path, "BertModel")
    with pytest.raises(DataError, match="needs two labels or more; all examples have 'a'"):
        Classification.load(source, ["a"])
    task = Classification.load(source, ["a", "b"])
    with pytest.raises(
        DataError, match=r"the label 'c' of 'Bread and more bread' is none of the 2 trained, 'a', 'b'; leave"
    ):
        task.preprocessor.tokenize(EXAMPLES[2])
    bank = task.attach()
    with pytest.raises(antefix.ContextLengthError):
        task.check_room(
            Room(bank), TokenizedExamples(EXAMPLES[:1], [task.preprocessor.tokenize(Example("sea " * 600, "a"))])
        )
    with pytest.raises(DataError, match="a text of the label 'a' has no tokens"):
        task.check_room(Room(bank), TokenizedExamples([Example("", "a")], [Tokens([], [0])]))


def test_padding_that_the_base_has_not_is_not_taken(tmp_path: Path) -> None:
    source = save(tmp_path, "LlamaForCausalLM")
    AutoTokenizer.from_pretrained(model_path(), pad_token="[PAD]").save_pretrained(tmp_path)
    task = Classification.load(source, ["a", "b"])
    rows = [task.preprocessor.features(task.preprocessor.tokenize(example)) for example in EXAMPLES[:2]]
    assert len(task.logits(rows)) == 2
    _, preprocessor = load_base(source)
    assert preprocessor.collate([preprocessor(example) for example in EXAMPLES])["input_ids"].max() < 1536


def test_named_modules_are_trained_beside_the_heads(tmp_path: Path) -> None:
    task = Classification.load(save(tmp_path, "BertForMaskedLM"), ["a", "b"])
    config = task.configure(antefix.PrefixConfig(4, trainable_modules=["classifier", "embeddings.LayerNorm"]))
    assert config.trainable_modules == ("classifier", "bert.pooler.dense", "embeddings.LayerNorm")


def test_a_base_that_numbers_the_labels_of_a_head_otherwise_is_refused(tmp_path: Path) -> None:
    names = {0: "pos", 1: "neg"}
    source = save(tmp_path, "BertForSequenceClassification", id2label=names, label2id={v: k for k, v in names.items()})
    assert Classification.load(source, ["neg", "pos"]).preprocessor.labels == ("pos", "neg")
    assert Classification.load(source, ["pos", "neg"], in_order=True).preprocessor.labels == ("pos", "neg")
    with pytest.raises(antefix.ConfigError, match="numbers its labels 'pos', 'neg' and the prefix 'neg', 'pos'"):
        Classification.load(source, ["neg", "pos"], in_order=True)
    more = Classification.load(source, ["neg", "other", "pos"], in_order=True)  # whose head the prefix brings
    assert more.preprocessor.labels == ("neg", "other", "pos")


def test_a_head_that_does_not_tell_its_labels_is_not_scored_by_a_guess(tmp_path: Path) -> None:
    task = Classification.load(save(tmp_path / "base", "BertForSequenceClassification"), ["a", "b"])
    bank = task.attach()
    bank.add("p", task.configure(antefix.PrefixConfig(3, init="random")))
    with pytest.raises(antefix.ConfigError, match="'silent' brings a head and does not tell which labels"):
        shared_labels({"silent": bank.prefix("p")})
    bank.remove("p")
    bank.add("p", task.configure(antefix.PrefixConfig(3, init="random")), metadata=task.metadata)
    assert shared_labels({"p": bank.prefix("p")}) == ["a", "b"]


def test_a_classification_writes_no_tokens() -> None:
    recipe = Recipe(model="m", data="d", prompt="{q}", answer="{a}", task="classification")
    with pytest.raises(antefix.ConfigError, match="max_new_tokens is of answers that are written"):
        load_task(recipe, EXAMPLES, max_new_tokens=5)
