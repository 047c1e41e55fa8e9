"""Answer requests on a vLLM engine of its own, in a process of its own."""

from __future__ import annotations

import faulthandler
import os
from typing import Any

from antefix.vllm import Prefixes, engine_args
from tests.vllm.asynchronous import schedule_asynchronously
from vllm import LLM, SamplingParams

COUNTERS = ("vllm:num_preemptions", "vllm:spec_decode_num_accepted_tokens")
MAX_SECONDS = 300


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Answer every request of a job, in as many rounds as it says, each round in one call."""
    faulthandler.dump_traceback_later(MAX_SECONDS, exit=True)
    if job["engine"]["distributed_executor_backend"] == "uni":
        # One process starts in a third of the time; tensor parallelism and the server have several.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if job.get("asynchronous"):
        schedule_asynchronously()
    prefixes = Prefixes(job["base"], job["prefixes"])
    llm = LLM(job["base"], skip_tokenizer_init=True, disable_log_stats=False, **engine_args(), **job["engine"])
    params = SamplingParams(temperature=0, ignore_eos=True, detokenize=False, **job["sampling"])
    prompts: list[Any] = [{"prompt_token_ids": request["prompt"]} for request in job["requests"]]
    chosen = [prefixes.use(r["prefix"], params) if r["prefix"] else params for r in job["requests"]]
    rounds = [[answer.outputs[0] for answer in llm.generate(prompts, chosen)] for _ in range(job["rounds"])]
    counters = {metric.name: metric.value for metric in llm.get_metrics() if metric.name in COUNTERS}  # type: ignore[attr-defined]
    if job.get("asynchronous"):
        engine = llm.llm_engine.engine_core.engine_core  # type: ignore[attr-defined]
        counters["steps scheduled ahead"] = engine.batch_queue_size - 1
        assert type(engine.scheduler).__name__ == "AsyncScheduler"
    answers = [[list(answer.token_ids) for answer in answers] for answers in rounds]
    finish = [[answer.finish_reason for answer in answers] for answers in rounds]
    faulthandler.cancel_dump_traceback_later()
    return {"rounds": answers, "finish": finish, "counters": counters}
