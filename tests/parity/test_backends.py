"""The attention implementation, the dtype and the compiler change how a prefix is computed, and not what it does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import antefix
from antefix.initialize import token_prefix
from tests.parity.compare import assert_close, assert_far, attach, logits, with_prefix
from tests.parity.conftest import over
from tests.parity.families import FAMILIES, Family, draw_ids
from tests.parity.reference import register_reference


def agrees_with_eager(family: Family, implementation: str) -> None:
    """Switch after attaching, as a user may, and compare batches with one prefix, with several and with none."""
    model, bank = with_prefix(family)
    bank.add("longer", antefix.PrefixConfig(8, init="random"))
    inputs = family.draw_inputs()
    for selection in ("p", ["longer", "p"], [None, "p"], None):
        if family.group == "vision-language" and isinstance(selection, list):
            continue
        with bank.use(selection):
            model.set_attn_implementation("eager")
            expected = logits(model, **inputs)
            model.set_attn_implementation(implementation)
            assert_close(logits(model, **inputs), expected)


@over("decoder", "encoder", "encoder-decoder", "speech", "vision", "vision-language")
def test_sdpa(family: Family) -> None:
    agrees_with_eager(family, "sdpa")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:flex_attention called without torch.compile")
@over("decoder", "encoder", "encoder-decoder", "speech", "vision")
def test_flex_attention(family: Family) -> None:
    agrees_with_eager(family, "flex_attention")


@pytest.mark.xfail(
    reason="it needs a separate package, which no test has had, so a prefix refuses it by name", strict=True
)
@over("decoder", "encoder", "encoder-decoder", "speech", "vision")
def test_flash_attention_2(family: Family) -> None:
    agrees_with_eager(family, "flash_attention_2")


@over("decoder", "encoder", "encoder-decoder")
def test_attention_weights(family: Family) -> None:
    """The weights run over prefix and tokens, and are those of a base that read the prefix's text."""
    num_text = 5
    model, reader = family.build(attn_implementation="eager"), family.build()
    reader.set_attn_implementation(register_reference(num_text))
    text, inputs = draw_ids(1, num_text, seed=7), family.draw_inputs()
    read = {name: torch.cat([text.expand(2, -1), ids], 1) for name, ids in inputs.items()}
    bank = attach(family, model)
    equals_text = "text_in_context" not in family.gaps
    bank.add("p", token_prefix(model, text, bank.sites) if equals_text else antefix.PrefixConfig(5, init="random"))
    with torch.no_grad(), bank.use("p"):
        actual = model(**inputs, output_attentions=True, use_cache=False)
        expected = reader(**read, output_attentions=True, use_cache=False)
    compared = 0
    for name in ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions"):
        for weights, reference in zip(actual.get(name) or (), expected.get(name) or (), strict=True):
            if weights is not None:  # a linear layer has none
                assert weights.shape == reference[:, :, num_text:].shape
                assert weights[..., :num_text].sum(-1).min() > 0
                if equals_text:
                    assert_close(weights, reference[:, :, num_text:])
                compared += 1
    assert compared >= len(bank.sites)


@over("decoder", "encoder", "encoder-decoder", "speech", "vision", "vision-language")
def test_bfloat16(family: Family) -> None:
    """In bf16 the prefix stays in fp32, what comes out is bf16, and the prefix does what it does in fp32."""
    model, bank = with_prefix(family)
    inputs = family.draw_inputs()
    prefix, plain, expected = bank.prefix("p"), logits_without(bank, model, inputs), logits(model, **inputs)
    half = family.build().to(torch.bfloat16)
    half_inputs = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in inputs.items()}
    bank = antefix.attach(half, example_inputs=half_inputs if family.inputs else None)
    bank.add("trained", antefix.PrefixConfig(5, init="random"))
    assert all(p.dtype == torch.float32 for p in half.antefix_prefixes.parameters())
    bank.add("p", prefix)
    with bank.use("p"):
        actual = logits(half, **half_inputs)
    assert actual.dtype == torch.bfloat16
    # bf16 keeps 8 bits: over the layers a few per cent are lost. What the prefix does must stand out from that.
    lost = (actual.float() - expected).norm()
    assert lost < 0.25 * (plain - expected).norm()


def logits_without(bank: antefix.PrefixBank, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with bank.use(None):
        return logits(model, **inputs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own look at inputs
@over("decoder", "encoder", "encoder-decoder", "speech", "vision")
def test_compile(family: Family) -> None:
    """Forward and gradients of the whole graph equal those of the eager model."""
    model, bank = with_prefix(family)
    inputs = family.draw_inputs() | ({} if family.group in ("encoder", "vision") else {"use_cache": False})
    parameters = list(model.antefix_prefixes.parameters())

    def run(compiled: torch.nn.Module) -> list[torch.Tensor]:
        output = compiled(**inputs)[0]
        uneven = torch.linspace(0, 1, output.shape[-1])  # the squares of a normalised output add up to a constant
        return [output, *torch.autograd.grad((output.square() * uneven).mean(), parameters)]

    torch._dynamo.reset()
    for actual, expected in zip(
        run(torch.compile(model, fullgraph=True, backend="aot_eager")), run(model), strict=True
    ):
        assert_close(actual, expected)
    assert_far(logits_without(bank, model, inputs), run(model)[0].detach())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor() -> None:
    """The compiler's own code, not only its graph, gives what the eager model gives, for prompt and next token."""
    model, bank = with_prefix(FAMILIES["Llama"])
    bank.add("longer", antefix.PrefixConfig(8, init="random"))
    compiled: Any = torch.compile(model, fullgraph=True)
    for selection in ("p", ["longer", None]):
        with bank.use(selection):
            for length in (7, 1):
                ids = draw_ids(2, length)
                assert_close(logits(compiled, input_ids=ids), logits(model, input_ids=ids))


def test_a_cap_on_scores_is_not_dropped() -> None:
    """Transformers' sdpa function has none, and says so."""
    model, bank = with_prefix(FAMILIES["Gemma 2"])
    model.config._attn_implementation = "sdpa"
    for selection in (None, "p"):
        with bank.use(selection), pytest.raises(ValueError, match="does not support `softcap`"):
            logits(model, input_ids=draw_ids(2, 6))
