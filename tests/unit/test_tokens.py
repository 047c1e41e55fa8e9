"""Examples as token ids: what has a label, what is cut, and how batches are padded."""

from __future__ import annotations

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from antefix.embedded import model_path
from antefix.errors import DataError
from antefix.training.examples import Example
from antefix.training.tokens import TextPreprocessor, Tokens, cut_end

TOKENIZER = AutoTokenizer.from_pretrained(model_path())
CAUSAL, SEQ2SEQ = (TextPreprocessor(TOKENIZER, TOKENIZER, is_encoder_decoder=kind) for kind in (False, True))
BOS, EOS = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id


def test_a_causal_prompt_has_no_labels_and_an_answer_ends() -> None:
    row = CAUSAL(Example("The sea\n", "a boat"))
    prompt, answer = TOKENIZER("The sea\n")["input_ids"], TOKENIZER("a boat", add_special_tokens=False)["input_ids"]
    assert prompt[0] == BOS
    assert row["input_ids"] == [*prompt, *answer, EOS]
    assert row["labels"] == [-100] * len(prompt) + [*answer, EOS]


def test_an_encoder_decoder_reads_the_prompt_and_writes_the_answer() -> None:
    row = SEQ2SEQ(Example("The sea\n", "a boat"))
    assert row == {"input_ids": TOKENIZER("The sea\n")["input_ids"], "labels": TOKENIZER("a boat")["input_ids"]}


def test_an_answer_without_tokens_is_named() -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path(), eos_token=None)
    with pytest.raises(DataError, match="an answer without tokens: 'The sea'"):
        TextPreprocessor(TOKENIZER, tokenizer, False).tokenize(Example("The sea", ""))


@pytest.mark.parametrize(
    ("max_length", "prompt", "answer"),
    [
        (8, [BOS, 11, 12, 13], [21, 22, EOS]),  # fits
        (7, [BOS, 11, 12, 13], [21, 22, EOS]),  # fits exactly
        (5, [BOS, 13], [21, 22, EOS]),  # the end of the prompt, which the answer goes on from
        (4, [BOS], [21, 22, EOS]),
        (3, [BOS], [21, 22]),  # only then the answer
        (2, [BOS], [21]),
    ],
)
def test_a_causal_prompt_is_cut_on_the_left_before_its_answer(
    max_length: int, prompt: list[int], answer: list[int]
) -> None:
    tokens = Tokens([BOS, 11, 12, 13], [21, 22, EOS])
    cut = CAUSAL.cut(tokens, max_length)
    assert cut == Tokens(prompt, answer)
    assert CAUSAL.length(tokens) == 7
    assert CAUSAL.length(cut) == min(7, max_length)


def test_a_prompt_without_an_opening_token_is_cut_on_the_left_too() -> None:
    tokens = Tokens([11, 12, 13], [21, 22])
    assert CAUSAL.cut(tokens, 4) == Tokens([12, 13], [21, 22])
    assert CAUSAL.cut(tokens, 2) == Tokens([13], [21])
    assert CAUSAL.cut(Tokens([], [21, 22]), 2) == Tokens([], [21, 22])
    assert CAUSAL.features(Tokens([], [21, 22]))["labels"] == [-100, 22]  # nothing predicts the first


def test_an_encoder_decoder_cuts_both_on_the_right_and_keeps_what_closes_the_prompt() -> None:
    tokens = Tokens([11, 12, 13, EOS], [21, 22, 23])
    assert SEQ2SEQ.length(tokens) == 4
    assert SEQ2SEQ.cut(tokens, 4) == tokens
    assert SEQ2SEQ.cut(tokens, 2) == Tokens([11, EOS], [21, 22])
    assert cut_end([11, 12, 13], 2, TOKENIZER) == [11, 12]


def test_batches_are_padded_on_the_right() -> None:
    pad = TOKENIZER.pad_token_id
    batch = CAUSAL.collate([{"input_ids": [1, 2, 3], "labels": [1]}, {"input_ids": [4], "labels": [5, 6]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, pad, pad]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, -100], [5, 6]]


def test_a_tokenizer_without_an_end_of_text_ends_answers_with_its_separator() -> None:
    """As BERT's, which Chinese versions of GPT-2 have, and whose prompts it would close as well."""
    tokenizer = AutoTokenizer.from_pretrained(model_path(), eos_token=None, sep_token="</s>")
    special = [("<s>", BOS), ("</s>", EOS)]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    preprocessor = TextPreprocessor(tokenizer, tokenizer, is_encoder_decoder=False)
    found, expected = preprocessor.tokenize(Example("The sea", "a boat")), CAUSAL.tokenize(Example("The sea", "a boat"))
    assert found == expected
    assert preprocessor.ends == CAUSAL.ends == {EOS}


@pytest.mark.parametrize(
    ("template", "prompt", "expected"),
    [
        ("</s> $A", "", ["</s>"]),
        ("</s> $A", "a", ["</s>", "a"]),
        ("<s> $A", "a</s>", ["<s>", "a", "</s>"]),
        ("<s> $A </s>", "a", ["<s>", "a"]),
        ("<s> $A </s>", "", ["<s>"]),
        ("$A </s>", "", []),
        ("$A </s>", "a</s>", ["a", "</s>"]),
    ],
)
def test_a_prompt_loses_no_end_but_what_the_tokenizer_closed_it_with(
    template: str, prompt: str, expected: list[str]
) -> None:
    """OPT's opening token is the one that ends a text."""
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    special = [("<s>", BOS), ("</s>", EOS)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special)
    ids = TextPreprocessor(tokenizer, tokenizer, is_encoder_decoder=False).prompt_ids(prompt)
    assert tokenizer.convert_ids_to_tokens(ids) == expected
