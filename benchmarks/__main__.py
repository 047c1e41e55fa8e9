"""Measure what a prefix costs: `python -m benchmarks` writes figures, a table and plots; `--help` has its options."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.environment import environment
from benchmarks.floor import measure_products, measure_speed
from benchmarks.growth import GROWTHS, grow
from benchmarks.measure import interleave, keep_memory, peak_bytes
from benchmarks.report import write_page
from benchmarks.scenarios import KEEPING_MEMORY, SCENARIOS, Scenario, prefix_bytes

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def main() -> None:
    """Measure every scenario and every growth, write them as JSON, and write the page anew from all results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds a scenario (default: 7)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--only", help="measure only scenarios whose name contains this, and write nothing")
    parser.add_argument(
        "--page", action="store_true", help="write the page from results that are there, measure nothing"
    )
    arguments = parser.parse_args()
    if not arguments.page:
        torch.set_num_threads(arguments.threads)
        transformers.logging.set_verbosity_error()
        on_gpu = torch.cuda.is_available()
        known = SCENARIOS if on_gpu else SCENARIOS + KEEPING_MEMORY
        chosen = [scenario for scenario in known if (arguments.only or "") in scenario.name]
        if arguments.only:
            for scenario in chosen:
                measure(scenario, arguments.rounds)
            return
        speed = measure_speed()
        found = {
            "environment": {**environment(arguments.threads), "rounds": arguments.rounds},
            "speed": asdict(speed),
            "bytes_held": {"batch": 16, "num_virtual_tokens": 1024, **prefix_bytes(16, 1024)},
            "growth": {growth.name: grow(growth, speed) for growth in GROWTHS},
            "results": [measure(scenario, arguments.rounds) for scenario in chosen],
        }
        RESULTS.mkdir(exist_ok=True)
        name = "cuda" if on_gpu else "cpu"
        (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    write_page(PAGE, RESULTS)


def measure(scenario: Scenario, rounds: int) -> dict[str, Any]:
    """Return what each peer needs, in seconds or bytes."""
    if scenario.keeps_memory:
        keep_memory()
    calls = scenario.build()
    found: dict[str, dict[str, float]]
    if scenario.measure == "memory":
        found = {name: {"median": peak_bytes(call)} for name, call in calls.items()}
    else:
        found = interleave(calls, rounds)
    print(
        f"{scenario.name:62}", "  ".join(f"{name} {value['median']:.4g}" for name, value in found.items()), flush=True
    )
    flops = measure_products(*scenario.queries_and_tokens) if scenario.queries_and_tokens else None
    return {"scenario": scenario.name, "measured": found, "flops_of_products": flops}


if __name__ == "__main__":
    main()
