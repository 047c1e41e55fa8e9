"""A prefix follows its sites: to another device, to offloaded layers, to another dtype, and with nothing on any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model

import antefix
from antefix.initialize import token_prefix
from tests.parity.compare import assert_close, logits, with_prefix
from tests.parity.families import FAMILIES


def test_layers_on_the_disk(tmp_path: Path) -> None:
    """Accelerate moves each layer's weights in for its own forward; the prefix is there as well."""
    family = FAMILIES["Llama"]
    model, bank = with_prefix(family)
    inputs, prefix = family.draw_inputs(), bank.prefix("p")
    expected = logits(model, **inputs)
    for attach_first in (True, False):
        offloaded = family.build()
        bank = antefix.attach(offloaded) if attach_first else None
        places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
        places |= {"model.layers.0": "disk", "model.layers.1": "cpu"}
        if attach_first:
            places["antefix_prefixes"] = "cpu"
        dispatch_model(offloaded, places, main_device="cpu", offload_dir=str(tmp_path / str(attach_first)))
        assert offloaded.model.layers[0].self_attn.q_proj.weight.is_meta
        bank = bank or antefix.attach(offloaded)
        bank.add("p", prefix)
        with bank.use("p"):
            assert_close(logits(offloaded, **inputs), expected)


@pytest.mark.parametrize("offload", [cpu_offload, disk_offload])
def test_every_layer_is_offloaded(tmp_path: Path, offload: Callable[..., None]) -> None:
    """The model says that it is on the meta device then; what is made for it is where it computes."""
    family = FAMILIES["Llama"]
    model, bank = with_prefix(family)
    inputs, tokens = family.draw_inputs(), torch.tensor([[3, 1, 4]])
    offloaded = family.build()
    offload(offloaded, execution_device="cpu", **({"offload_dir": str(tmp_path)} if offload is disk_offload else {}))
    assert offloaded.device.type == "meta"
    other = antefix.attach(offloaded)
    other.add("p", bank.prefix("p"))
    with other.use("p"):
        assert_close(logits(offloaded, **inputs), logits(model, **inputs))
    expected = token_prefix(family.build(), tokens, bank.sites)
    assert token_prefix(offloaded, tokens, other.sites).content_hash() == expected.content_hash()
    other.add("trained", antefix.PrefixConfig(5, init="random"))
    offloaded(**inputs).logits.sum().backward()
    (encoder,) = offloaded.antefix_prefixes
    assert all(parameter.grad is not None and parameter.grad.norm() > 0 for parameter in encoder.parameters())


def test_the_base_moves_after_attaching() -> None:
    family = FAMILIES["BART"]
    model, _ = with_prefix(family)
    inputs = family.draw_inputs()
    expected = logits(model, **inputs)
    assert logits(model.to(torch.float64), **inputs).dtype == torch.float64
    assert_close(logits(model, **inputs).float(), expected)


def test_a_model_without_numbers() -> None:
    """On the meta device a prefix can be planned: shapes and sizes without memory."""
    model = FAMILIES["Qwen3"].build().to("meta")
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(5, init="random"))
    assert all(p.is_meta for p in model.antefix_prefixes.parameters())
    ids = torch.zeros(2, 7, dtype=torch.long, device="meta")
    assert model(input_ids=ids).logits.shape == (2, 7, 67)
