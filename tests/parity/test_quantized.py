"""A base model in 8 or 4 bits: a prefix of text equals the text in context, and trains in fp32."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

import antefix
from antefix.embedded import model_path
from antefix.initialize import token_prefix
from tests.parity.compare import assert_close, assert_far, logits

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def torchao(name: str) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    if name == "int8":
        return TorchAoConfig(Int8WeightOnlyConfig())
    return TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)))


def bitsandbytes(name: str) -> Any:
    return BitsAndBytesConfig(load_in_8bit=name == "int8", load_in_4bit=name == "int4", bnb_4bit_quant_type="nf4")


def load(config: Any) -> PreTrainedModel:
    """Load the embedded model, quantised: sizes that the kernels take, and weights that were trained."""
    return AutoModelForCausalLM.from_pretrained(
        model_path(), quantization_config=config, dtype=torch.float32, device_map="cpu"
    ).eval()


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("library", [torchao, bitsandbytes])
def test_text_in_context(library: Any, bits: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    model = load(library(bits))
    assert type(model.model.layers[0].mlp.up_proj.weight) is not torch.nn.Parameter
    generator = torch.Generator().manual_seed(0)
    text, ids = (torch.randint(3, 1000, shape, generator=generator) for shape in ((1, 5), (2, 7)))
    expected = logits(model, input_ids=torch.cat([text.expand(2, -1), ids], 1))[:, 5:]
    bank = antefix.attach(model)
    bank.add("text", token_prefix(model, text, bank.sites))
    # bitsandbytes' int8 rounds activations to 8 bits as well, by the largest of what stands together in one call.
    tolerance = 0.05 if library is bitsandbytes and bits == "int8" else 5e-5
    with bank.use("text"):
        assert_close(logits(model, input_ids=ids), expected, tolerance)
    assert (logits(model, input_ids=ids) - expected).abs().max() > 0.2 * expected.abs().max()


@pytest.mark.parametrize(
    ("library", "bits"), [(torchao, "int8"), (torchao, "int4"), (bitsandbytes, "int8")]
)  # on a CPU, bitsandbytes has no gradients in 4 bits
def test_a_prefix_trains(library: Any, bits: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    model = load(library(bits))
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(5, init="random"))
    before = bank.prefix("p")
    (parameter,) = (p for p in model.parameters() if p.requires_grad)
    optimizer = torch.optim.AdamW([parameter], lr=0.05)
    ids = torch.randint(3, 1000, (2, 7), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(5):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert parameter.dtype == torch.float32
    assert losses[-1] < losses[0]
    for path, key in bank.prefix("p").keys.items():
        assert_far(key, before.keys[path])
