"""Systems mixed in one batch score as each of them alone, example by example, without any of antefix's batching."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

import antefix
from antefix.embedded import model_path
from antefix.embedded.records import prompt
from antefix.training.chats import Chats, in_chats
from antefix.training.classification import Classification
from antefix.training.evaluation import Evaluation, evaluate
from antefix.training.examples import Example
from antefix.training.metrics import exact_match
from antefix.training.mixed import MixedBatches
from antefix.training.room import Room
from antefix.training.systems import System
from antefix.training.templates import Template, Templates
from antefix.training.tokens import TextPreprocessor, TokenizedExamples, Tokens
from antefix.training.writing import Writing
from tests.conftest import build_model
from tests.unit.test_classification import save

ROWS = [
    (f"line {n}", {"source": source, "target": target})
    for n, (source, target) in enumerate(
        [
            ("name: Bo Li | job: cook", "Bo Li cooks."),
            ("title: The Red Fox", "A fox."),
            ("name: Bo Li | job: cook", "A cook named Bo Li"),  # a second reference
            ("name: Danora Mokins | job: baker | town: Benton | age: 41 | likes: chess", "Danora bakes in Benton."),
        ]
    )
]
WORDING = Templates(Template(prompt("{source}")), Template("{target}"))


def attach_with_prefixes(task: Writing) -> antefix.PrefixBank:
    """Give a task two prefixes of different lengths that matter."""
    bank = task.attach()
    for name, tokens in (("a", 7), ("b", 3)):
        torch.manual_seed(tokens)
        bank.add(name, antefix.PrefixConfig(tokens, init="random"))
        prefix = bank.prefix(name)
        bank.remove(name)
        keys, values = ({path: 20 * t for path, t in held.items()} for held in (prefix.keys, prefix.values))
        bank.add(name, antefix.Prefix(prefix.sites, keys, values))
    return bank


@pytest.mark.parametrize("name", ["llama", "bart", "t5"])
def test_a_mixed_batch_gives_what_each_system_gives_alone(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    model = build_model(name)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    task = Writing(model, TextPreprocessor(tokenizer, tokenizer, model.config.is_encoder_decoder), max_new_tokens=6)
    bank = attach_with_prefixes(task)
    systems = [System("base"), System("text", text="The sea. "), System("a", "a"), System("b", "b")]
    found = evaluate(task, bank, systems, ROWS, WORDING, ["loss", "perplexity", "exact_match", "bleu"], batch_size=5)
    assert found.num_examples == 4
    assert found.prompts == [prompt(ROWS[n][1]["source"]) for n in (0, 1, 3)]
    assert found.references == [["Bo Li cooks.", "A cook named Bo Li"], ["A fox."], ["Danora bakes in Benton."]]
    for system in systems:
        losses, outputs = [], []
        with bank.use(system.prefix):
            for _, fields in ROWS:
                text, answer = system.text + prompt(fields["source"]), fields["target"]
                losses.append(_loss(model, tokenizer, text, answer))
                outputs.append(_answer(model, tokenizer, text))
        measured = found.measured[system.name]
        assert measured.metrics["loss"].value == pytest.approx(np.divide(*np.sum(losses, axis=0)), rel=1e-5)
        assert measured.metrics["perplexity"].value == pytest.approx(np.exp(measured.metrics["loss"].value))
        assert list(measured.outputs) == [outputs[n] for n in (0, 1, 3)]
    assert len({tuple(measured.outputs) for measured in found.measured.values()}) > 1, "the systems do differ"
    assert list(found.comparisons) == ["text", "a", "b"]
    for other, metrics in found.comparisons.items():
        for metric, comparison in metrics.items():
            values = [found.measured[which].metrics[metric].value for which in ("base", other)]
            assert comparison.difference == values[1] - values[0]


def _loss(model: Any, tokenizer: Any, text: str, answer: str) -> tuple[float, int]:
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    if model.config.is_encoder_decoder:
        labels = tokenizer(text_target=answer, return_tensors="pt")["input_ids"]
        return float(model(input_ids=ids, labels=labels).loss) * labels.numel(), labels.numel()
    labels = torch.tensor([tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]])
    logits = model(torch.cat([ids, labels], dim=1)).logits[0, ids.shape[1] - 1 : -1]
    return float(cross_entropy(logits, labels[0], reduction="sum")), labels.numel()


def _answer(model: Any, tokenizer: Any, text: str) -> str:
    ids = tokenizer(text, return_tensors="pt")
    made = model.generate(**ids, max_new_tokens=6, do_sample=False, num_beams=1)[0]
    start = 0 if model.config.is_encoder_decoder else ids["input_ids"].shape[1]
    return str(tokenizer.decode(made[start:], skip_special_tokens=True))


def test_rows_keep_the_prefix_of_their_system_and_their_place() -> None:
    bank = antefix.attach(build_model("llama"))
    bank.add("a", antefix.PrefixConfig(3, init="random"))
    used = []

    def shout(items: list[str]) -> list[str]:
        used.append(bank.selection())
        return [item.upper() for item in items]

    found = MixedBatches(bank, [None, "a"], batch_size=3).run([["ccc", "a"], ["bb", "dddd"]], length=len, compute=shout)
    assert found == [["CCC", "A"], ["BB", "DDDD"]]
    assert used == [("a", None, "a"), (None,)], "the longest first"


def test_loss_alone_writes_nothing_and_needs_no_room_to_write() -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    model = build_model("gpt2")  # of 64 positions
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    task = Writing(model, TextPreprocessor(tokenizer, tokenizer, False), max_new_tokens=60)
    bank = task.attach()
    found = evaluate(task, bank, [System("base")], ROWS[:3], WORDING, ["loss"])
    assert found.measured["base"].outputs == []
    assert found.comparisons == {}
    with pytest.raises(antefix.ContextLengthError, match="need more than the 64 positions"):
        evaluate(task, bank, [System("base")], ROWS[:3], WORDING, ["exact_match"])
    with pytest.raises(antefix.ConfigError, match="two systems have the same name; they are 'x', 'x'"):
        evaluate(task, bank, [System("x"), System("x")], ROWS, WORDING)


def test_an_encoder_decoder_reads_no_empty_prompt() -> None:
    model = build_model("bart")
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    task = Writing(model, TextPreprocessor(tokenizer, tokenizer, is_encoder_decoder=True))
    nothing = TokenizedExamples([Example("", "a boat")], [Tokens([], [5, 6])])
    with pytest.raises(antefix.DataError, match=r"a prompt has no tokens.* the example of the answer 'a boat' out"):
        task.check_room(Room(task.attach()), nothing)


def test_nothing_is_compared_by_a_single_prompt() -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    model = build_model("llama")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    task = Writing(model, TextPreprocessor(tokenizer, tokenizer, False), max_new_tokens=3)
    bank, systems, metrics = task.attach(), [System("base"), System("text", text="The sea. ")], ["loss", "exact_match"]
    for numbers, compared in (([0], []), ([0, 2], []), ([0, 1], ["text"])):  # 2 is another answer to the prompt of 0
        found = evaluate(task, bank, systems, [ROWS[number] for number in numbers], WORDING, metrics)
        assert list(found.comparisons) == compared


def test_references_are_told_as_they_are_scored() -> None:
    """A chat template may write more before an answer than the data says, as Qwen3's does with an empty thought."""
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '(note) ' if m.role == 'assistant' }}{{ m.content }}\n{% endfor %}"
    )
    model = build_model("llama")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    task = Writing(model, in_chats(TextPreprocessor(tokenizer, tokenizer, False)), max_new_tokens=1)
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A fox."}]
    rows, wording = [("line 1", {"messages": turns})], Chats("messages", tokenizer)
    found = evaluate(task, task.attach(), [System("base")], rows, wording, ["exact_match"])
    assert found.references == [["(note) A fox.\n"]]


def test_labels_of_several_prefixes_in_one_batch(tmp_path: Path) -> None:
    task = Classification.load(save(tmp_path, "BertForMaskedLM"), ["x", "y", "z"])
    rows = [(f"line {n}", {"q": text, "a": "xyz"[n % 3]}) for n, text in enumerate(["sea", "a boat", "bread"] * 4)]
    wording, bank = Templates(Template("{q}"), Template("{a}")), task.attach()
    for name in ("p", "q"):
        bank.add(name, task.configure(antefix.PrefixConfig(3, init="random")))
        with torch.no_grad():
            for parameter in model_parameters(bank):
                parameter.add_(torch.randn_like(parameter))
    systems = [System("base"), System("p", "p"), System("q", "q")]
    mixed = evaluate(task, bank, systems, rows, wording, batch_size=7)
    assert _figures(mixed, "p") != _figures(mixed, "q")
    for system in systems:
        alone = evaluate(task, bank, [system], rows, wording, batch_size=1)
        assert _figures(mixed, system.name) == pytest.approx(_figures(alone, system.name), rel=1e-4)
        right = [reference for (reference,) in mixed.references]
        outputs = mixed.measured[system.name].outputs
        assert exact_match(outputs, [[text] for text in right]).value == _figures(mixed, system.name)["accuracy"]


def model_parameters(bank: antefix.PrefixBank) -> list[torch.nn.Parameter]:
    return list(bank.model.antefix_prefixes.parameters())


def _figures(found: Evaluation, system: str) -> dict[str, float]:
    return {name: metric.value for name, metric in found.measured[system].metrics.items()}
