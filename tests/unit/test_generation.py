"""What is written ends where training taught it to, and does not go by the habits of the base."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2Config,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from antefix.embedded import model_path
from antefix.embedded.records import draw_examples, prompt
from antefix.training.base import load_base
from antefix.training.chats import in_chats
from antefix.training.generation import answer_batch, answers, decoded, generate_ids
from antefix.training.tokens import TextPreprocessor
from tests.conftest import build_model, draw_ids

Base = tuple[PreTrainedModel, TextPreprocessor]
EXAMPLES = draw_examples("letter", 4, seed=5)
PROMPTS = [f"style: letter\n{prompt('{source}').format(**example)}" for example in EXAMPLES]
EXPECTED = [example["target"] for example in EXAMPLES]
CLOSED = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}</s>\n{% endif %}{% endfor %}"


@pytest.fixture
def base() -> Base:
    model, preprocessor = load_base("embedded")
    assert answers(model, preprocessor, PROMPTS, 64) == EXPECTED
    return model, preprocessor


@pytest.mark.parametrize("configured", [None, 5, [5, 6]])
def test_an_answer_ends_with_the_tokenizers_end_whatever_the_configuration_names(base: Base, configured: Any) -> None:
    model, preprocessor = base
    model.generation_config.eos_token_id = configured  # type: ignore[union-attr]
    assert answers(model, preprocessor, PROMPTS, 64) == EXPECTED


def test_an_answer_in_a_chat_ends_with_what_the_template_closes_it_with(base: Base) -> None:
    model, _ = base
    tokenizer = AutoTokenizer.from_pretrained(model_path(), eos_token="<pad>", chat_template=CLOSED)
    model.generation_config.eos_token_id = None  # type: ignore[union-attr]
    ordinary = TextPreprocessor(tokenizer, tokenizer, is_encoder_decoder=False, adds_special_tokens=False)
    prompts = [f"<s>{prompt}" for prompt in PROMPTS]
    assert answers(model, ordinary, prompts, 64) != EXPECTED
    chats = in_chats(ordinary)
    assert chats.closing == "</s>\n"
    assert answers(model, chats, prompts, 64) == EXPECTED


@pytest.mark.parametrize(
    "habit",
    [
        {"min_length": 300},
        {"min_new_tokens": 60},
        {"no_repeat_ngram_size": 2},
        {"repetition_penalty": 3.0},
        {"bad_words_ids": [[30], [31], [32], [33], [34], [35]]},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "temperature": 9.0, "top_k": 3, "min_p": 0.001},
        {"stop_strings": ["e"]},
        {"guidance_scale": 5.0},
        {"exponential_decay_length_penalty": (1, 9.0)},
        {"return_dict_in_generate": True},
        {"watermarking_config": {"bias": 90.0, "seeding_scheme": "lefthash"}},
        {"token_healing": True},
        {"dola_layers": "high"},
        {"is_assistant": True},
        {"assistant_early_exit": 2, "prompt_lookup_num_tokens": 3},
        {"suppress_tokens": list(range(30, 60)), "begin_suppress_tokens": list(range(1000))},
        {"force_words_ids": [[30]]},
    ],
)
def test_habits_of_the_base_do_not_count(base: Base, habit: dict[str, Any]) -> None:
    model, preprocessor = base
    model.generation_config.update(**habit)  # type: ignore[union-attr]
    assert answers(model, preprocessor, PROMPTS, 64) == EXPECTED


def test_a_temperature_samples_from_all_tokens() -> None:
    rows = draw_ids(1, 4).expand(1000, -1)
    torch.manual_seed(0)
    made = generate_ids(build_model("llama"), (), temperature=50.0, input_ids=rows, max_new_tokens=1, pad_token_id=0)
    assert len(made[:, -1].unique()) > 60  # of 67, where Transformers samples from 50 unless told otherwise


def test_a_batch_with_two_vocabularies_is_written_as_row_by_row() -> None:
    """The ids of padding differ, and the decoder's start is an ordinary token of the answers' tokenizer."""
    torch.manual_seed(0)
    source = AutoTokenizer.from_pretrained(model_path())
    target = AutoTokenizer.from_pretrained(model_path(), pad_token="</s>")
    sizes: dict[str, Any] = {"vocab_size": len(source), "bos_token_id": 1, "eos_token_id": 2}
    reader = BertConfig(
        **sizes, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, pad_token_id=40
    )
    writer = GPT2Config(**sizes, n_embd=16, n_layer=1, n_head=2)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(reader, writer, decoder_start_token_id=50)
    model = EncoderDecoderModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0)
    source.pad_token = source.convert_ids_to_tokens(40)
    preprocessor = TextPreprocessor(source, target, is_encoder_decoder=True)
    texts = ("A", "Two words", "Many more words than that", "name: Bo Li", "x y z")
    rows = [source(text)["input_ids"] for text in texts]
    open_ended = [generate_ids(model, (), input_ids=torch.tensor([row]), max_new_tokens=12)[0].tolist() for row in rows]
    end = open_ended[0][4]
    assert not all(end in row for row in open_ended)
    model.generation_config.eos_token_id = end  # type: ignore[union-attr]
    one_by_one = [answer_batch(model, preprocessor, [row], 12)[0] for row in rows]
    assert answer_batch(model, preprocessor, rows, 12) == one_by_one
    start = target.decode([50])
    assert not all(text.startswith(start) for text in one_by_one)


def test_chats_say_how_texts_are_read() -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path(), chat_template=CLOSED)
    preprocessor = TextPreprocessor(tokenizer, tokenizer, is_encoder_decoder=False)
    assert in_chats(preprocessor) == replace(preprocessor, adds_special_tokens=False, closing="</s>\n")


@pytest.mark.parametrize(
    "template",
    [
        CLOSED.replace("</s>", "\n\n<end of answer>"),
        "{% if messages[0].role != 'system' %}{{ raise_exception('who am I?') }}{% endif %}"
        + CLOSED.replace("</s>", "\n\n<end of answer>"),
    ],
    ids=["blank line first", "system first"],
)
def test_what_closes_an_answer_is_no_blank_line(template: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path(), chat_template=template)
    tokenizer.add_tokens(["\n\n", "<end of answer>"])
    preprocessor = in_chats(TextPreprocessor(tokenizer, tokenizer, is_encoder_decoder=False))
    assert preprocessor.ends == set(tokenizer.convert_tokens_to_ids(["</s>", "<end of answer>"]))


def test_what_was_written_is_not_mended(base: Base) -> None:
    """A tokenizer may be set to move punctuation to the word before, which no reference is."""
    text = "it 's a fox , do n't ask ."
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(text.split())}, unk_token="it"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, clean_up_tokenization_spaces=True)
    preprocessor = TextPreprocessor(tokenizer, tokenizer, is_encoder_decoder=False)
    model, _ = base
    model.generation_config.eos_token_id = None  # type: ignore[union-attr]
    assert decoded(model, preprocessor, [tokenizer(text)["input_ids"]]) == [text]
