"""An engine in this process: blocks that requests share, a bound on what workers keep, and files that go wrong."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import antefix
from antefix.vllm import Prefixes, engine_args
from tests.vllm.bases import draw_prefix, solo_answer
from tests.vllm.conftest import World

BASE, BLOCK = "Qwen3", 32
LENGTHS = {"long": 1024, "a": 5, "b": 40, "c": 33, "d": 64}
PROMPT = [7, 11, 13, 17, 19]


class Engine:
    """An engine whose workers keep two prefixes, and what Transformers answers in its place."""

    def __init__(self, world: World, folder: Path) -> None:
        from vllm import LLM

        self.bank = antefix.attach(world.load(BASE))
        self.folder = folder
        for number, (name, length) in enumerate(LENGTHS.items()):
            prefix = draw_prefix(self.bank, length, seed=number)
            self.bank.add(name, prefix)
            antefix.save_prefix(prefix, self.file(name))
        self.prefixes = Prefixes(world.base(BASE), {name: self.file(name) for name in LENGTHS})
        settings = world.engine | {"max_model_len": 2048, "num_gpu_blocks_override": 4096, "block_size": BLOCK}
        settings |= engine_args(max_resident_prefixes=2)
        self.llm = LLM(world.base(BASE), skip_tokenizer_init=True, disable_log_stats=False, **settings)
        self.prefixes.check(self.llm)

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    @property
    def scheduler(self) -> Any:
        return self.llm.llm_engine.engine_core.engine_core.scheduler  # type: ignore[attr-defined]

    def params(self, name: str | None, max_tokens: int = 8) -> Any:
        from vllm import SamplingParams

        plain = SamplingParams(temperature=0, ignore_eos=True, detokenize=False, max_tokens=max_tokens)
        return self.prefixes.use(name, plain) if name else plain

    def answer(self, *names: str | None) -> list[list[int] | None]:
        """Return the answers to one prompt with each prefix, None for a request that failed."""
        outputs = self.llm.generate([{"prompt_token_ids": PROMPT}] * len(names), [self.params(n) for n in names])
        first = [output.outputs[0] for output in outputs]
        return [None if answer.finish_reason == "error" else list(answer.token_ids) for answer in first]

    def expected(self, *names: str | None) -> list[list[int]]:
        return [solo_answer(self.bank, name, PROMPT, 8) for name in names]

    def num_placed(self) -> int:
        """Return how many tokens of prefixes were written into vLLM's cache so far."""
        return sum(m.value for m in self.llm.get_metrics() if m.name == "vllm:external_prefix_cache_hits")  # type: ignore[attr-defined]

    def most_blocks(self, salts: list[str | None]) -> int:
        """Return the most blocks in use while requests with the longest prefix, one for each salt, are answered."""
        assert self.llm.reset_prefix_cache()
        engine, pool = self.llm.llm_engine, self.scheduler.kv_cache_manager.block_pool
        for number, salt in enumerate(salts):
            prompt = {"prompt_token_ids": PROMPT} | ({"cache_salt": salt} if salt else {})
            engine.add_request(f"{len(set(salts))}-{number}", prompt, self.params("long"))  # type: ignore[arg-type]
        most = 0
        while engine.has_unfinished_requests():
            engine.step()
            most = max(most, pool.num_gpu_blocks - pool.get_num_free_blocks())
        return most


@pytest.fixture(scope="module")
def engine(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    patch = pytest.MonkeyPatch()
    patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    engine = Engine(world, tmp_path_factory.mktemp("engine"))
    yield engine
    engine.llm.llm_engine.engine_core.shutdown()
    del engine
    gc.collect()
    patch.undo()


def test_a_prefix_is_in_the_cache_once(engine: Engine) -> None:
    shared = engine.most_blocks([None] * 64)
    copied = engine.most_blocks([str(number) for number in range(64)])
    null_block, own = 1, 1  # prompt and answer of each request take a block of 32 tokens
    assert shared == null_block + 1024 // BLOCK + 64 * own
    assert copied == null_block + 64 * (1024 // BLOCK + own)


def test_workers_keep_no_more_prefixes_than_they_are_told(engine: Engine) -> None:
    names = ["a", None, "b", "c", "long", "d", "a", "c"] * 3
    assert engine.answer(*names) == engine.expected(*names)
    connector = engine.scheduler.connector
    assert 1 <= len(connector._scheduler._residences) <= 2
    worker = engine.llm.collective_rpc(_resident)
    assert worker[0] <= 2


def _resident(worker: Any) -> int:
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    return len(get_kv_transfer_group()._loader._rows)


def test_a_prefix_of_every_length_around_a_block(engine: Engine) -> None:
    for length in (1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK):
        prefix = draw_prefix(engine.bank, length, seed=100 + length)
        engine.bank.add(f"n{length}", prefix)
        antefix.save_prefix(prefix, engine.file(f"n{length}"))
        engine.prefixes.add(f"n{length}", engine.file(f"n{length}"))
    names = [f"n{length}" for length in (1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK)] * 2
    assert engine.answer(*names) == engine.expected(*names)


@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_a_file_that_goes_wrong_fails_its_requests_alone(engine: Engine, damage: str) -> None:
    name = f"wrong-{damage}"
    file = engine.file(name)
    prefix = draw_prefix(engine.bank, 21, seed=len(damage))
    antefix.save_prefix(prefix, file)
    engine.prefixes.add(name, file)
    good = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(good[:-50])
    else:
        antefix.save_prefix(draw_prefix(engine.bank, 21, seed=99), file)
    assert engine.answer(name, "a", None, name) == [None, *engine.expected("a", None), None]
    file.write_bytes(good)
    engine.bank.add(name, prefix)
    assert engine.answer(name) == engine.expected(name)


def test_a_prompt_that_leaves_no_room_fails_alone(engine: Engine) -> None:
    prompts = [{"prompt_token_ids": [5] * length} for length in (1023, 1024, 1030)]
    outputs = engine.llm.generate(prompts, [engine.params("long")] * 3)
    assert [(o.outputs[0].finish_reason, len(o.outputs[0].token_ids)) for o in outputs] == [
        ("length", 1),
        ("error", 0),
        ("error", 0),
    ]


def test_a_user_has_a_cache_apart_from_another(engine: Engine) -> None:
    assert engine.llm.reset_prefix_cache()
    placed = []
    for salt in ("one", "one", "two", "one"):
        before = engine.num_placed()
        prompt: Any = {"prompt_token_ids": PROMPT, "cache_salt": salt}
        answer = engine.llm.generate([prompt], [engine.params("long")])[0]
        assert answer.num_cached_tokens == 1024  # placed or found, a prefix is never computed
        placed.append(engine.num_placed() - before)
    assert placed == [1024, 0, 1024, 0]


def test_prompt_log_probabilities_are_refused(engine: Engine) -> None:
    from vllm import SamplingParams

    with pytest.raises(antefix.ConfigError, match="prompt_logprobs"):
        engine.prefixes.use("a", SamplingParams(prompt_logprobs=1))
    # Whoever writes the ticket in by hand has a request that fails, not one without its prefix.
    by_hand = SamplingParams(prompt_logprobs=1, max_tokens=2, extra_args={
        "kv_transfer_params": engine.prefixes["a"].signed()
    })  # fmt: skip
    failed = engine.llm.generate([{"prompt_token_ids": PROMPT}], [by_hand])
    assert failed[0].outputs[0].finish_reason == "error"
    assert engine.answer("a") == engine.expected("a")
