"""Conversations through a real tokenizer's chat template: what is prompt, what is learned, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from antefix.embedded import model_path
from antefix.errors import ConfigError, DataError
from antefix.training import writing
from antefix.training.base import load_base
from antefix.training.chats import Chats, in_chats
from antefix.training.mixed import MixedBatches
from antefix.training.tokens import TextPreprocessor, TokenizedExamples
from antefix.training.writing import Writing

CHATML = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}</{{ m['role'] }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
QUESTION, ANSWER = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": " Ada. "}
FIRST = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
MANY = [*FIRST, {"role": "assistant", "content": "Ho"}, QUESTION, ANSWER]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    loaded = AutoTokenizer.from_pretrained(model_path())
    loaded.chat_template = CHATML
    return loaded


def row(messages: object) -> tuple[str, dict[str, Any]]:
    return "line 4", {"chat": messages}


def test_the_last_answer_is_learned_and_all_before_it_is_the_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    example = Chats("chat", tokenizer).example(row(MANY))
    assert example.prompt == (
        "<s><system>Be short.</system>\n<user>Hi</user>\n<assistant>Ho</assistant>\n<user>Who?</user>\n<assistant>"
    )
    assert example.answer == " Ada. "
    assert example.completion == "Ada.</assistant>\n"


def test_ids_are_those_of_the_template_and_labels_those_of_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    example = Chats("chat", tokenizer).example(row([QUESTION, ANSWER]))
    encoded = TextPreprocessor(tokenizer, tokenizer, False, adds_special_tokens=False)(example)
    prompt = tokenizer.apply_chat_template([QUESTION], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert encoded["input_ids"][: len(prompt)] == prompt
    assert prompt.count(tokenizer.bos_token_id) == 1
    assert encoded["labels"][: len(prompt)] == [-100] * len(prompt)
    learned = encoded["labels"][len(prompt) :]
    assert learned == encoded["input_ids"][len(prompt) :]
    assert tokenizer.decode(learned) == "Ada.</assistant>\n"


def test_prompts_without_an_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    chats = Chats("chat", tokenizer)
    expected = "<s><user>Who?</user>\n<assistant>"
    assert chats.prompt(row([QUESTION])) == chats.prompt(row([QUESTION, ANSWER])) == chats.ask("Who?") == expected
    assert chats.prompt(row([QUESTION]), "Sir: ") == "<s><user>Sir: Who?</user>\n<assistant>"


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([ANSWER, QUESTION], "the last message of line 4 is the user's; it must be the assistant's answer"),
        ([ANSWER], "has an answer and no message before it"),
        ([], "'chat' of line 4 must be a list of messages"),
        ("Who?", "must be a list of messages .* it is 'Who"),
        ([{"role": "user"}], "must be a list of messages with a role and a content"),
        ([{"role": "user", "content": [{"type": "image"}]}, ANSWER], "a content that are text"),
        ([{"role": "user", "content": "\ud800"}, ANSWER], "line 4 holds half a surrogate pair"),
    ],
)
def test_what_is_no_conversation_is_named(tokenizer: PreTrainedTokenizerBase, messages: object, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        Chats("chat", tokenizer).example(row(messages))


def test_templates_that_do_not_do_are_named(tokenizer: PreTrainedTokenizerBase) -> None:
    chats = Chats("chat", tokenizer)
    with pytest.raises(DataError, match="there is no field 'chat' in line 4, which has 'talk'"):
        chats.example(("line 4", {"talk": []}))
    tokenizer.chat_template = "{{ raise_exception('no system\n role') }}"
    with pytest.raises(DataError, match="the chat template refuses line 4: no system role"):
        chats.example(row([QUESTION, ANSWER]))
    tokenizer.chat_template = "{{ messages[0]['content'] + 1 }}"
    with pytest.raises(DataError, match="the chat template refuses line 4: can only concatenate str"):
        chats.example(row([QUESTION, ANSWER]))
    tokenizer.chat_template = "{% if add_generation_prompt %}Now: {% endif %}{{ messages[-1]['content'] }}"
    with pytest.raises(DataError, match="there is no telling where the answer begins"):
        chats.example(row([QUESTION, ANSWER]))
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="the tokenizer has no chat template to write 'chat' with"):
        Chats("chat", tokenizer)


def test_an_answer_as_it_was_taught_is_right(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some templates write what was thought, or that nothing was, before the last answer alone."""
    thought = "{% if m['role'] == 'assistant' and loop.last %}[thought]{% endif %}"
    tokenizer.chat_template = CHATML.replace("{{ m['content']", thought + "{{ m['content']")
    tokenizer.chat_template = tokenizer.chat_template.replace("</{{ m['role'] }}>", "</s>")
    model, preprocessor = load_base("embedded")
    preprocessor = in_chats(replace(preprocessor, tokenizer=tokenizer, answer_tokenizer=tokenizer))
    task = Writing(model, preprocessor, max_new_tokens=20)
    part = TokenizedExamples.of([Chats("chat", tokenizer).example(row([QUESTION, ANSWER]))], preprocessor)
    monkeypatch.setattr(writing, "answer_batch", lambda *_: ["[thought]Ada."])
    bank = task.attach()
    (measured,) = task.measure([part], MixedBatches(bank, [None], 1), ["exact_match"])
    assert measured.metrics["exact_match"].value == 1.0
