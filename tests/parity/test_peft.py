"""Real PEFT and antefix compute the same, from PEFT's checkpoints and from checkpoints for PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import antefix
from antefix.initialize import random_prefix
from antefix.interop.peft import read, write
from tests.parity.compare import assert_close, assert_far
from tests.parity.peft_models import CASES, KINDS, NAMES, TOKENS, TOLERANCE, answer, family, logits, peft, wrap


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_checkpoint_of_peft_computes_the_same_in_antefix(name: str, kind: str, tmp_path: Path) -> None:
    model = wrap(name, **KINDS[kind])
    model.save_pretrained(tmp_path)
    base = family(name).build()
    bank = antefix.attach(base)
    bank.load(tmp_path, "p")
    bare = logits(base)
    bank.activate("p")
    assert_close(logits(base), logits(model), TOLERANCE)
    assert_far(logits(base), bare)
    assert torch.equal(answer(base), answer(model))
    assert bank.prefix("p").num_virtual_tokens == TOKENS


@pytest.mark.parametrize("name", NAMES)
def test_a_prefix_written_for_peft_computes_the_same_there(name: str, tmp_path: Path) -> None:
    """Every layer has numbers of its own, also in an encoder-decoder of an even number of layers."""
    base = family(name).build()
    bank = antefix.attach(base)
    bank.add("p", random_prefix([site for site in bank.sites if site.kind == "decoder"], TOKENS))
    bank.activate("p")
    write(bank.prefix("p"), tmp_path, base, bank.sites)
    model = peft.PeftModel.from_pretrained(family(name).build(), tmp_path)
    assert_close(logits(model), logits(base), TOLERANCE)
    assert torch.equal(answer(model), answer(base))
    assert torch.equal(answer(model, num_beams=2), answer(base, num_beams=2))


def test_a_checkpoint_survives_antefix_byte_by_byte(tmp_path: Path) -> None:
    wrap().save_pretrained(tmp_path / "theirs")
    base = family("Llama").build()
    write(read(tmp_path / "theirs", base), tmp_path / "ours", base)
    theirs, ours = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("theirs", "ours"))
    assert ours == theirs
