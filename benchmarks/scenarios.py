"""What is timed: training steps and generation on an 8-layer Llama, bare, with PEFT's prefix and with antefix's.

Both hold the same numbers, and their outputs are compared before anything is timed.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import antefix

VOCAB_SIZE = 4096
Call = Callable[[], object]


@dataclass(frozen=True)
class Scenario:
    """One piece of work, and the function that builds its calls by peer."""

    name: str
    build: Callable[[], dict[str, Call]]


@dataclass(frozen=True)
class Peers:
    """The same base three times: bare, with PEFT's prefix, with antefix's."""

    base: LlamaForCausalLM
    peft: PeftModel
    attached: LlamaForCausalLM


def training_step(batch: int, length: int, num_virtual_tokens: int) -> dict[str, Call]:
    """Forward and backward; the bare base propagates down to its embeddings, as a prefix makes it do."""
    peers = build_peers(num_virtual_tokens)
    ids = draw_ids(batch, length)

    def prefixed(model: torch.nn.Module) -> None:
        model(input_ids=ids, labels=ids, use_cache=False if model is peers.attached else None).loss.backward()

    def bare() -> None:
        embedded = peers.base.get_input_embeddings()(ids).detach().requires_grad_()
        peers.base(inputs_embeds=embedded, labels=ids, use_cache=False).loss.backward()

    for model in (peers.peft, peers.attached):
        model.train()
    return {
        "base": bare,
        "peft": functools.partial(prefixed, peers.peft),
        "antefix": functools.partial(prefixed, peers.attached),
    }


def generation(batch: int, num_virtual_tokens: int) -> dict[str, Call]:
    """Greedy generation of 32 tokens from 16."""
    peers = build_peers(num_virtual_tokens)
    ids = draw_ids(batch, 16)

    def generate(model: LlamaForCausalLM) -> torch.Tensor:
        return model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False, pad_token_id=0
        )

    return {
        "base": functools.partial(generate, peers.base),
        "peft": functools.partial(generate, peers.peft),
        "antefix": functools.partial(generate, peers.attached),
    }


def build_peers(num_virtual_tokens: int) -> Peers:
    """Build the three and check that PEFT and antefix compute the same."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=8192,
        eos_token_id=None,
        pad_token_id=0,
    )
    base = LlamaForCausalLM(config).eval()
    base.requires_grad_(False)
    attached = copy.deepcopy(base)
    peft = get_peft_model(
        copy.deepcopy(base), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=num_virtual_tokens)
    ).eval()
    bank = antefix.attach(attached)
    bank.add("peer", antefix.PrefixConfig(num_virtual_tokens, init="zero"))
    with torch.no_grad():
        flat = peft.prompt_encoder["default"].embedding.weight
        attached.antefix_prefixes[0].embedding.weight.copy_(flat)
        ids = draw_ids(2, 8)
        difference = (peft(input_ids=ids).logits - attached(input_ids=ids).logits).abs().max().item()
    if difference > 1e-4:
        raise RuntimeError(f"PEFT and antefix differ by {difference} before timing")
    return Peers(base, peft, attached)


def draw_ids(batch: int, length: int) -> torch.Tensor:
    """Draw token ids, always the same."""
    return torch.randint(1, VOCAB_SIZE, (batch, length), generator=torch.Generator().manual_seed(1))


SCENARIOS = [
    *(
        Scenario(f"training step, B=8 T=128 P={tokens}", functools.partial(training_step, 8, 128, tokens))
        for tokens in (16, 128, 512)
    ),
    *(
        Scenario(f"generate 32 tokens, B={batch} P={tokens}", functools.partial(generation, batch, tokens))
        for batch, tokens in ((1, 128), (8, 128), (16, 1024))
    ),
]
