"""A teacher that reads once says and writes what the base does with the text in context."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Lfm2Config, Llama4TextConfig, LlamaConfig, Qwen3NextConfig

import antefix
from antefix.bank import PrefixBank
from antefix.errors import UnsupportedModelError
from antefix.training.distillation.lessons import Draft
from antefix.training.distillation.teacher import Teacher, common_start
from antefix.training.tokens import TextPreprocessor

Base = tuple[PrefixBank, TextPreprocessor]
SHAPE: dict[str, Any] = {
    "vocab_size": 1536, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA_4 = {"head_dim": 8, "intermediate_size_mlp": 32, "num_local_experts": 2}
QWEN3_NEXT = {
    "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
TEXT = "style: letter\nname: Bomar Grikins | town: Fealby | age: 31 | job: cook | likes: chess\n=>\n"


def ids_of(base: Base, text: str) -> list[int]:
    return base[1].tokenizer(text, add_special_tokens=False)["input_ids"]


def draft(base: Base, opening: str, written: str) -> Draft:
    fixed, free = ids_of(base, opening), ids_of(base, written)
    context = base[1].prompt_ids(TEXT)
    return Draft(context, [1], fixed + free, [False] * len(fixed) + [True] * len(free))


def test_targets_are_those_of_the_text_in_context(base: Base, teacher: Teacher) -> None:
    drafts = [draft(base, "Dear", " Bomar Grikins, we hear"), draft(base, "In Fealby", " there lives a cook, they say")]
    read = len(drafts[0].context)
    with teacher.reading(drafts[0].context):
        found = teacher.targets(drafts, read)
    for one, targets in zip(drafts, found, strict=True):
        with base[0].use(None), torch.no_grad():
            logits = base[0].model(input_ids=torch.tensor([one.context + one.continuation])).logits[0]
        places = torch.tensor(one.is_written).nonzero()[:, 0] + read - 1
        expected = logits[places].log_softmax(-1)
        tokens = torch.tensor(one.continuation)[torch.tensor(one.is_written)]
        # fp32, in another order of sums.
        torch.testing.assert_close(targets.own, expected[range(len(tokens)), tokens], rtol=1e-4, atol=1e-4)
        assert torch.equal(targets.ids[:, 0].long(), expected.argmax(-1))
        assert targets.divergence(logits[places]).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("config", "is_read"),
    [
        (LlamaConfig(**SHAPE), True),
        (Llama4TextConfig(**SHAPE, **LLAMA_4, attention_chunk_size=32), True),
        (Llama4TextConfig(**SHAPE, **LLAMA_4, attention_chunk_size=8), False),
        (Qwen3NextConfig(**SHAPE, **QWEN3_NEXT, layer_types=["linear_attention", "full_attention"]), False),
        (Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"]), False),
    ],
    ids=["Llama", "Llama 4", "Llama 4 past its chunk", "Qwen3-Next", "LFM2"],
)
def test_a_base_that_reads_no_text_as_a_prefix_is_refused(base: Base, config: Any, is_read: bool) -> None:
    torch.manual_seed(1)
    bank = antefix.attach(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())
    teacher = Teacher(bank, base[1], num_logits=5, temperature=1.0, max_new=4)
    refusal = pytest.raises(UnsupportedModelError, match="does not read a text that stands before it as a prefix")
    with nullcontext() if is_read else refusal:
        teacher.check_reads(ids_of(base, TEXT), None)
    teacher.check_reads(ids_of(base, "Dear " * 9), 2)
    assert bank.names == []


def test_it_writes_what_the_text_in_context_makes_it_write(base: Base, teacher: Teacher) -> None:
    greedy = Teacher(base[0], base[1], 5, temperature=0.0, max_new=12)
    rows = [ids_of(base, "Dear"), ids_of(base, "In Fealby there lives")]
    context = base[1].prompt_ids(TEXT)
    with greedy.reading(context):
        written = greedy.write(rows, seed=0, stops_at_line_break=False)
    for row, found in zip(rows, written, strict=True):
        whole = torch.tensor([context + row])
        with base[0].use(None):
            expected = base[0].model.generate(whole, max_new_tokens=12, do_sample=False)[0, whole.shape[1] :]
        assert found == expected.tolist()[: len(found)]
        assert len(found) == 12 or found[-1] == base[1].tokenizer.eos_token_id
    assert base[0].names == []


def test_a_line_ends_with_its_break(base: Base) -> None:
    greedy = Teacher(base[0], base[1], 5, temperature=0.0, max_new=40)
    verse = base[1].prompt_ids(TEXT.replace("letter", "verse"))
    (line,) = greedy.answer([verse], seed=0, stops_at_line_break=True)
    text = base[1].tokenizer.decode(line)
    assert text.endswith("\n")
    assert text.count("\n") == 1
    assert greedy.ended(line, stops_at_line_break=True)
    assert not greedy.ended(line[:-1], stops_at_line_break=True)
    assert not greedy.ended(line, stops_at_line_break=False)


def test_sampling_depends_on_its_seed_alone(base: Base, teacher: Teacher) -> None:
    rows = [base[1].prompt_ids("name:")] * 4
    first = teacher.answer(rows, seed=5, stops_at_line_break=False)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert teacher.answer(rows, seed=5, stops_at_line_break=False) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert teacher.answer(rows, seed=6, stops_at_line_break=False) != first


def test_lessons_read_what_their_contexts_have_in_common(base: Base, teacher: Teacher) -> None:
    one, other = draft(base, "", "Dear Bomar"), draft(base, "", "Hello Bomar")
    other = replace(other, context=other.context[:-3] + ids_of(base, "!"))
    together = teacher.lessons([one, other])
    for single, lesson in zip([one, other], together, strict=True):
        (alone,) = teacher.lessons([single])
        torch.testing.assert_close(lesson.targets.own, alone.targets.own, rtol=1e-4, atol=1e-4)
        assert lesson.ids == single.prompt + single.continuation


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2], [1, 2]], 1),
        ([[1, 2, 3]], 2),
        ([[5], [1, 2]], 0),
        ([[1, 9, 3], [1, 2, 3]], 1),
    ],
)
def test_a_common_start_leaves_a_token_to_each_row(rows: list[list[int]], expected: int) -> None:
    assert common_start(rows) == expected
