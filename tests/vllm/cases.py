"""The ways an engine is run in the table of exactness: the base model, the engine's settings, the sampling's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

LENGTHS = (32, 20, 64, 7, 45)
"""Prefixes of these lengths, multiples of a block and not, beside the bare base."""
NUM_PROMPTS = 4
MAX_TOKENS = 40


TWO_RANKS = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}


@dataclass(frozen=True, eq=False)
class Case:
    """One engine; every answer of every round must be the one that Transformers gives alone."""

    name: str
    base: str = "Llama"
    engine: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    counter: str | None = None
    """A counter of vLLM that must have risen, so that what the case is for has happened."""
    asynchronous: bool = False
    """Schedule each step before the last one's tokens are known, which vLLM does beside a GPU."""


CASES = (
    Case("blocks of 32 tokens"),
    Case("blocks of 128 tokens", engine={"block_size": 128}),
    Case("without vLLM's prefix cache", engine={"enable_prefix_caching": False}),
    Case("chunked prefill, 48 tokens a step", engine={"max_num_batched_tokens": 48, "max_num_seqs": 8}),
    Case("preemption, 26 blocks", engine={"num_gpu_blocks_override": 26}, counter="vllm:num_preemptions"),
    Case("asynchronous scheduling", asynchronous=True, counter="steps scheduled ahead"),
    Case(
        "asynchronous scheduling and preemption",
        engine={"num_gpu_blocks_override": 26},
        asynchronous=True,
        counter="vllm:num_preemptions",
    ),
    Case("torch.compile", engine={"enforce_eager": False}),
    Case("tensor parallel, 2 ranks", engine=TWO_RANKS),
    Case("tensor parallel, more ranks than heads", base="multi-query Llama", engine=TWO_RANKS),
    Case(
        "speculative decoding by n-grams",
        engine={
            "speculative_config": {
                "method": "ngram",
                "num_speculative_tokens": 3,
                "prompt_lookup_max": 3,
                "prompt_lookup_min": 2,
            }
        },
        counter="vllm:spec_decode_num_accepted_tokens",
    ),
    Case("repetition penalty", base="Qwen3", sampling={"repetition_penalty": 1.3}),
    Case("GPT-2: learned positions", base="GPT-2"),
    Case("Qwen3: normalised queries and keys", base="Qwen3"),
    Case("Phi-3: longrope, within its original context", base="Phi-3"),
    Case("Gemma 3: two groups of blocks, within the window", base="Gemma 3"),
    Case("Mistral: one window, within it", base="Mistral"),
)
