"""Engines for the tests: jobs that run in processes of their own, two at a time, and what Transformers answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

import antefix
from tests.vllm.bases import draw_prefix, load, save_base, solo_answer
from tests.vllm.cases import CASES, LENGTHS, MAX_TOKENS, NUM_PROMPTS, Case

ROOT = Path(__file__).parents[2]
# Before anything imports vLLM, for this process and all that it starts.
os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
)
ENGINE = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256, "block_size": 32, "seed": 0}
ENGINE |= {"distributed_executor_backend": "uni"}


class World:
    """Base models, prefix files and prompts, made once; and the answers that Transformers gives to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        context = get_context("forkserver")
        context.set_forkserver_preload(["tests.vllm.answer"])  # to import vLLM takes longer than most jobs
        self.pool = ProcessPoolExecutor(max_workers=2, mp_context=context, max_tasks_per_child=1)
        self._bases: dict[str, str] = {}
        self._banks: dict[str, antefix.PrefixBank] = {}
        self._answers: dict[tuple[str, float], list[list[int]]] = {}

    @property
    def engine(self) -> dict[str, Any]:
        """The settings of an engine, unless a case has others."""
        return dict(ENGINE)

    def base(self, name: str) -> str:
        if name not in self._bases:
            self._bases[name] = save_base(name, self.folder)
        return self._bases[name]

    def load(self, name: str) -> PreTrainedModel:
        return load(self.base(name))

    def bank(self, name: str) -> antefix.PrefixBank:
        """Return a bank with a prefix of each length, which are also in files."""
        if name not in self._banks:
            bank = self._banks[name] = antefix.attach(self.load(name))
            for length in LENGTHS:
                prefix = draw_prefix(bank, length, seed=length)
                bank.add(f"p{length}", prefix)
                antefix.save_prefix(prefix, self.file(name, f"p{length}"))
        return self._banks[name]

    def file(self, base: str, prefix: str) -> Path:
        return self.folder / "prefixes" / base / f"{prefix}.safetensors"

    def requests(self) -> list[dict[str, Any]]:
        """Return every prompt with every prefix and with none; they do not begin alike, and have different lengths."""
        prompts = [[(7 * start + 3 * i) % 500 + 3 for i in range(1 + 10 * start)] for start in range(NUM_PROMPTS)]
        names = [None, *(f"p{length}" for length in LENGTHS)]
        return [{"prompt": prompt, "prefix": name} for name in names for prompt in prompts]

    def expected(self, base: str, penalty: float = 1.0) -> list[list[int]]:
        """Return what Transformers answers to each request alone."""
        if (base, penalty) not in self._answers:
            bank = self.bank(base)
            bank.model.generation_config.repetition_penalty = penalty  # type: ignore[union-attr]
            self._answers[base, penalty] = [
                solo_answer(bank, r["prefix"], r["prompt"], MAX_TOKENS) for r in self.requests()
            ]
        return self._answers[base, penalty]

    def job(self, case: Case) -> dict[str, Any]:
        self.bank(case.base)
        return {
            "base": self.base(case.base),
            "prefixes": {f"p{length}": str(self.file(case.base, f"p{length}")) for length in LENGTHS},
            "engine": self.engine | case.engine,
            "sampling": {"max_tokens": MAX_TOKENS} | case.sampling,
            "requests": self.requests(),
            "rounds": 2,
            "asynchronous": case.asynchronous,
        }

    def start(self, job: dict[str, Any]) -> Future[dict[str, Any]]:
        """Run one job in a process of its own, two at a time."""
        from tests.vllm.answer import answer  # here, as tests of a server alone need not import vLLM

        return self.pool.submit(answer, job)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("vllm"))
    yield world
    world.pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session", autouse=True)
def results(world: World, request: pytest.FixtureRequest) -> dict[str, Future[dict[str, Any]]]:
    """Start the engines of all cases that were selected, before any other test; whoever asks waits for its own."""
    selected = {item.callspec.params.get("case") for item in request.session.items if hasattr(item, "callspec")}
    return {case.name: world.start(world.job(case)) for case in CASES if case in selected}
