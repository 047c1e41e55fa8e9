"""`generate` with a prefix, in every way that Transformers offers, equals decoding step by step without a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel, StaticCache
from transformers.generation.streamers import BaseStreamer

import antefix
from antefix.errors import UnsupportedModelError
from antefix.initialize import token_prefix
from tests.parity.compare import assert_close, assert_far, with_prefix
from tests.parity.conftest import over
from tests.parity.families import FAMILIES, Family, draw_ids

NUM_NEW = 8
SETTINGS: dict[str, Any] = {
    "max_new_tokens": NUM_NEW, "min_new_tokens": NUM_NEW, "do_sample": False, "eos_token_id": None,
    "disable_compile": True,
}  # fmt: skip


def prompt(family: Family, batch: int = 1, length: int = 6, seed: int = 0) -> dict[str, Tensor]:
    """Return what `generate` starts from."""
    if family.inputs is not None:
        drawn = {name: value for name, value in family.inputs().items() if not name.startswith("decoder")}
        return {name: value[: len(value) * batch // 2] for name, value in drawn.items()}
    return {"input_ids": draw_ids(batch, length, seed)}


def start(family: Family, model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Return the tokens that an answer goes on from: the prompt's own, or the decoder's first."""
    if not model.config.is_encoder_decoder:
        return inputs["input_ids"]
    first = getattr(model.config, "decoder_start_token_id", model.generation_config.bos_token_id)
    return torch.full((len(next(iter(inputs.values()))), 1), first)


def next_logits(model: PreTrainedModel, inputs: dict[str, Tensor], so_far: Tensor) -> Tensor:
    """Return the log-probabilities of the next token from one whole forward without a cache."""
    read = rows(inputs, len(so_far))
    if model.config.is_encoder_decoder:
        read["decoder_input_ids"] = so_far
    else:
        new = so_far.shape[1] - read["input_ids"].shape[1]
        read = {n: pad(v, (0, new)) if n.endswith("token_type_ids") else v for n, v in read.items()}
        read["input_ids"] = so_far
    with torch.no_grad():
        return model(**read, use_cache=False).logits[:, -1].float().log_softmax(-1)


def rows(inputs: dict[str, Tensor], batch: int) -> dict[str, Tensor]:
    """Repeat what one row reads."""
    return {name: torch.cat([value] * batch) for name, value in inputs.items()}


def step_by_step(family: Family, model: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the answer, new tokens alone, and the log-probabilities `(row, token, vocabulary)` it was chosen by."""
    tokens, steps = start(family, model, inputs), []
    for _ in range(NUM_NEW):
        steps.append(next_logits(model, inputs, tokens))
        tokens = torch.cat([tokens, steps[-1].argmax(-1, keepdim=True)], 1)
    return tokens[:, -NUM_NEW:], torch.stack(steps, 1)


def assert_generates(model: PreTrainedModel, expected: tuple[Tensor, Tensor], **arguments: Any) -> None:
    """Compare tokens, and what they were chosen by, because a small model often repeats itself."""
    made = model.generate(**arguments, **SETTINGS, return_dict_in_generate=True, output_logits=True)
    assert torch.equal(made.sequences[:, -NUM_NEW:], expected[0])
    assert_close(torch.stack(made.logits, 1).float().log_softmax(-1), expected[1])


@over("decoder", "encoder-decoder", "speech", "vision-language")
def test_greedy(family: Family) -> None:
    """With the default cache, with none, and rows of a batch with prefixes of their own."""
    model, bank = with_prefix(family)
    inputs = prompt(family)
    expected = step_by_step(family, model, inputs)
    assert_generates(model, expected, **inputs)
    assert_generates(model, expected, **inputs, use_cache=False)
    bank.add("longer", antefix.PrefixConfig(8, init="random"))
    with bank.use("longer"):
        longer = step_by_step(family, model, inputs)
    two = rows(inputs, 2)
    both = torch.cat([expected[0], longer[0]]), torch.cat([expected[1], longer[1]])
    with bank.use(["p", "longer"]):
        assert_generates(model, both, **two)
    assert_far(expected[1], longer[1])


@over("decoder", "encoder-decoder", "speech", "vision-language")
def test_beams(family: Family) -> None:
    """Beams by hand, all of them returned, and rows that keep the choice of their row."""
    model, bank = with_prefix(family)
    inputs = prompt(family)
    beams, scores = start(family, model, inputs), torch.zeros(1)
    for _ in range(NUM_NEW):
        totals = (scores[:, None] + next_logits(model, inputs, beams)).flatten()
        scores, chosen = totals.topk(3)
        vocabulary = totals.numel() // len(beams)
        beams = torch.cat([beams[chosen // vocabulary], (chosen % vocabulary)[:, None]], 1)
    settings = {**SETTINGS, "num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.0}
    assert torch.equal(model.generate(**inputs, **settings)[:, -NUM_NEW:], beams[:, -NUM_NEW:])
    two = rows(inputs, 2)
    with bank.use([None, "p"]):
        assert torch.equal(model.generate(**two, **settings)[3:, -NUM_NEW:], beams[:, -NUM_NEW:])


@over("decoder", "encoder-decoder", "speech")
def test_sampling(family: Family) -> None:
    """Sampling with a seed draws what drawing by hand from the same probabilities draws."""
    model, _ = with_prefix(family)
    inputs = prompt(family)
    expected = start(family, model, inputs)
    torch.manual_seed(3)
    for _ in range(NUM_NEW):
        probabilities = next_logits(model, inputs, expected).softmax(-1)
        expected = torch.cat([expected, torch.multinomial(probabilities, 1)], 1)
    torch.manual_seed(3)
    settings = {**SETTINGS, "do_sample": True, "top_k": 0, "min_new_tokens": None}
    assert torch.equal(model.generate(**inputs, **settings)[:, -NUM_NEW:], expected[:, -NUM_NEW:])
    assert len(model.generate(**inputs, **settings, num_return_sequences=3)) == 3


@over("decoder", "encoder-decoder", "speech")
def test_static_cache(family: Family) -> None:
    model, _ = with_prefix(family)
    inputs = prompt(family)
    assert_generates(model, step_by_step(family, model, inputs), **inputs, cache_implementation="static")


@over("decoder")
def test_turns(family: Family) -> None:
    """A cache kept from one turn to the next holds no prefix, and goes on where it stopped."""
    model, _ = with_prefix(family)
    inputs = prompt(family)
    cache = DynamicCache(config=model.config)
    first = model.generate(**inputs, **SETTINGS, past_key_values=cache)
    more = torch.cat([first, draw_ids(1, 3, seed=5)], 1)
    expected = step_by_step(family, model, {"input_ids": more})
    assert_generates(model, expected, input_ids=more, past_key_values=cache)


@over("decoder", "encoder-decoder")
def test_prompt_lookup(family: Family) -> None:
    model, _ = with_prefix(family)
    pattern = draw_ids(1, 3)
    inputs = {"input_ids": torch.cat([pattern, pattern, pattern], 1)}
    assert_generates(model, step_by_step(family, model, inputs), **inputs, prompt_lookup_num_tokens=3)


@over("decoder", "encoder-decoder")
def test_assisted(family: Family) -> None:
    """With a draft model that has a prefix of its own, and with one that has none."""
    model, _ = with_prefix(family)
    inputs = prompt(family)
    expected = step_by_step(family, model, inputs)
    with_its_own, _ = with_prefix(family)
    for draft in (family.build(), with_its_own):
        assert_generates(model, expected, **inputs, assistant_model=draft)


@over("decoder", "encoder-decoder")
def test_left_padding(family: Family) -> None:
    """Rows of several lengths and prefixes answer as they do alone."""
    model, bank = with_prefix(family)
    bank.add("longer", antefix.PrefixConfig(8, init="random"))
    short, long = draw_ids(1, 4), draw_ids(1, 7, seed=2)
    prompts = torch.cat([pad(short, (3, 0)), long])
    alone = []
    for ids, selection in ((short, "longer"), (long, "p")):
        with bank.use(selection):
            alone.append(step_by_step(family, model, {"input_ids": ids}))
    expected = torch.cat([tokens for tokens, _ in alone]), torch.cat([steps for _, steps in alone])
    with bank.use(["longer", "p"]):
        assert_generates(model, expected, input_ids=prompts, attention_mask=(prompts != 0).long())


@pytest.mark.parametrize("name", ["T5", "BART", "Llama"])
@pytest.mark.parametrize("selection", ["p", [None, "p"]], ids=str)
def test_a_prompt_read_in_chunks(name: str, selection: Any) -> None:
    """An encoder-decoder's first step then gets the first column of its encoder's mask, for all keys there are.

    That is Transformers' own doing, and wrong for a row with padding, so the row without any is compared.
    """
    model, bank = with_prefix(FAMILIES[name])
    prompts = torch.cat([pad(draw_ids(1, 4), (3, 0)), draw_ids(1, 7, seed=2)])
    arguments = SETTINGS | {"attention_mask": (prompts != 0).long()}
    arguments |= {"return_dict_in_generate": True, "output_logits": True}
    with bank.use(selection):
        whole = model.generate(prompts, **arguments)
        chunked = model.generate(prompts, **arguments, prefill_chunk_size=3)
    assert torch.equal(chunked.sequences[1], whole.sequences[1])
    assert_close(torch.stack(chunked.logits)[:, 1], torch.stack(whole.logits)[:, 1])


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "Gemma", "DeepSeek-V3"])
def test_an_answer_after_the_text_of_a_prefix(name: str) -> None:
    family = FAMILIES[name]
    model = family.build()
    text, inputs = draw_ids(1, 9, seed=1), prompt(family)
    read = {"input_ids": torch.cat([text, inputs["input_ids"]], 1)}
    bank = antefix.attach(model)
    bank.add("text", token_prefix(model, text, bank.sites))
    expected = step_by_step(family, model, read)
    with bank.use("text"):
        assert_generates(model, expected, **inputs)


class Listener(BaseStreamer):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def put(self, value: Tensor) -> None:
        """Hear tokens."""
        self.heard += value.flatten().tolist()

    def end(self) -> None:
        """Hear that there are no more."""
        self.heard.append(-1)


@pytest.mark.parametrize("name", ["Llama", "T5"])
def test_a_streamer_hears_every_token(name: str) -> None:
    family = FAMILIES[name]
    model, _ = with_prefix(family)
    inputs, listener = prompt(family), Listener()
    answer = model.generate(**inputs, **SETTINGS, streamer=listener)
    assert listener.heard == [*answer[0].tolist(), -1]


@pytest.mark.parametrize("name", ["Llama", "Gemma 3", "GPT-2"])
def test_a_static_cache_is_filled_by_hand(name: str) -> None:
    family = FAMILIES[name]
    model, _ = with_prefix(family)
    ids = torch.cat([prompt(family)["input_ids"], step_by_step(family, model, prompt(family))[0]], 1)
    cache = StaticCache(config=model.config, max_cache_len=32)
    with torch.no_grad():
        steps = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(ids.shape[1])]
        whole = model(ids, use_cache=False).logits
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-4, rtol=0)


def test_pages_of_keys_and_values_are_refused() -> None:
    """Continuous batching (`generate_batch`) hands attention a cache to fill, which prefixes would end up in."""
    model, bank = with_prefix(FAMILIES["Llama"])
    with pytest.raises(UnsupportedModelError, match="beside which no prefix can stand"):
        model(draw_ids(1, 4), cache=object())
    bank.deactivate()
    model(draw_ids(1, 4), cache=object())


def test_continuous_batching_is_refused_where_it_is_asked_for() -> None:
    """Its forwards run in a thread of its own, which does not see what this one uses."""
    model, bank = with_prefix(FAMILIES["Llama"])
    bank.deactivate()
    for selection in ("p", ["p", None]):
        with bank.use(selection), pytest.raises(UnsupportedModelError, match="beside which no prefix can stand"):
            model.generate_batch([[5, 6, 7]])
    with bank.use("p"), bank.use(None):
        assert model.init_continuous_batching() is not None
    bank.detach()
    assert "init_continuous_batching" not in vars(model)
