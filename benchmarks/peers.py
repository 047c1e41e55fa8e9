"""The peers: one base three times, bare, with PEFT's prefixes and with antefix's, which hold the same numbers."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PrefixTuningConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import antefix
from antefix.encoder import prefix_of
from antefix.interop.peft import AdapterSource
from benchmarks.bases import BILLION, SMALL

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""How far PEFT's logits and antefix's may lie apart, in proportion: rounding in another order."""


@dataclass(frozen=True)
class Peers:
    """The same base three times."""

    base: LlamaForCausalLM
    peft: Any  # a PeftModel, whose attributes are those of the model that it holds
    attached: LlamaForCausalLM
    bank: antefix.PrefixBank


def setting() -> tuple[LlamaConfig, torch.device, torch.dtype]:
    """Return the model's shape, device and dtype: those of a GPU where there is one."""
    if torch.cuda.is_available():
        return BILLION, torch.device("cuda"), torch.bfloat16
    return SMALL, torch.device("cpu"), torch.float32


def build(
    num_virtual_tokens: int, num_prefixes: int = 1, train: bool = False, encoder_hidden_size: int | None = None
) -> Peers:
    """Build the three, with prefixes `p0`, `p1` ..., and check that PEFT and antefix compute the same with each.

    To `train`, antefix has them as parameters, through the paper's MLP where `encoder_hidden_size` is given; else as
    data, as they are loaded from a file.
    """
    config, device, dtype = setting()
    torch.manual_seed(0)
    with device:
        base: LlamaForCausalLM = cast(Any, LlamaForCausalLM(config)).to(dtype).eval().requires_grad_(False)
    attached = copy.deepcopy(base)
    settings: dict[str, Any] = {}
    if encoder_hidden_size is not None:
        settings = {"prefix_projection": True, "encoder_hidden_size": encoder_hidden_size}
    theirs = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=num_virtual_tokens, **settings)
    peft: Any = get_peft_model(copy.deepcopy(base), theirs, adapter_name="p0")
    for number in range(1, num_prefixes):
        peft.add_adapter(f"p{number}", theirs)
    bank = antefix.attach(attached)
    for number in range(num_prefixes):
        if train:
            _copy_encoder(peft, bank, f"p{number}", num_virtual_tokens, encoder_hidden_size)
        else:
            theirs_now = AdapterSource(peft, f"p{number}", bank.sites)
            bank.add(f"p{number}", prefix_of([theirs_now], bank.sites, metadata={}, modules={}))
        bank.activate(f"p{number}")
        _check(base, peft, attached, f"p{number}", dtype)
    peft.set_adapter("p0")
    bank.activate("p0")
    return Peers(base, peft.eval(), attached, bank)


def draw_ids(batch: int, length: int) -> Tensor:
    """Draw token ids, always the same."""
    config, device, _ = setting()
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, config.vocab_size, (batch, length), generator=generator).to(device)


def _copy_encoder(peft: Any, bank: antefix.PrefixBank, name: str, tokens: int, hidden: int | None) -> None:
    """Give antefix an encoder with the parameters of PEFT's, which lays out the same."""
    settings: dict[str, Any] = {} if hidden is None else {"reparameterization": "mlp", "encoder_hidden_size": hidden}
    bank.add(name, antefix.PrefixConfig(tokens, init="random", **settings))
    model: Any = bank.model
    ours, theirs = model.antefix_prefixes[-1], peft.prompt_encoder[name]
    ours.embedding.load_state_dict(theirs.embedding.state_dict())
    if hidden is not None:
        ours.transform.load_state_dict(theirs.transform.state_dict())


def _check(base: LlamaForCausalLM, peft: Any, attached: LlamaForCausalLM, name: str, dtype: torch.dtype) -> None:
    peft.eval().set_adapter(name)
    ids = draw_ids(2, 8)
    with torch.no_grad():
        expected, actual, bare = (model(input_ids=ids).logits.float() for model in (peft, attached, base))
    difference, effect = ((other - expected).norm() / expected.norm() for other in (actual, bare))
    if not difference <= TOLERANCE[dtype] < effect:
        raise RuntimeError(
            f"before timing, logits differ from PEFT's by {difference:.2%} with antefix and {effect:.2%} without"
        )
