"""Answer requests on a vLLM engine of its own: `python -m tests.vllm.answer JOB RESULT`, both of them JSON files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from antefix.vllm import Prefixes, engine_args
from tests.vllm.asynchronous import schedule_asynchronously
from vllm import LLM, SamplingParams

COUNTERS = ("vllm:num_preemptions", "vllm:spec_decode_num_accepted_tokens")


def main(job_file: str, result_file: str) -> None:
    """Answer every request of a job, in as many rounds as it says, each round in one call."""
    job: dict[str, Any] = json.loads(Path(job_file).read_text())
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
    Path(result_file).write_text(json.dumps({"rounds": answers, "finish": finish, "counters": counters}))


if __name__ == "__main__":
    main(*sys.argv[1:])
