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
from benchmarks.measure import interleave, peak_bytes
from benchmarks.report import write_page
from benchmarks.scenarios import SCENARIOS, Scenario, prefix_bytes

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
        chosen = [scenario for scenario in SCENARIOS if (arguments.only or "") in scenario.name]
        results = [measure(scenario, arguments.rounds) for scenario in chosen]
        if arguments.only:
            return
        speed = measure_speed()
        found = {
            "environment": environment(arguments.threads),
            "speed": asdict(speed),
            "results": results,
            "bytes_held": {"batch": 16, "num_virtual_tokens": 1024, **prefix_bytes(16, 1024)},
            "growth": {growth.name: grow(growth, speed) for growth in GROWTHS},
        }
        RESULTS.mkdir(exist_ok=True)
        name = "cuda" if torch.cuda.is_available() else "cpu"
        (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    write_page(PAGE, RESULTS)


def measure(scenario: Scenario, rounds: int) -> dict[str, Any]:
    """Return what each peer needs, in seconds or bytes."""
    calls = scenario.build()
    if scenario.measure == "memory":
        found: dict[str, Any] = {name: {"median": peak_bytes(call)} for name, call in calls.items()}
    else:
        timings = interleave(calls, rounds)
        found = {name: {part.removesuffix("_s"): s for part, s in timing.items()} for name, timing in timings.items()}
    print(
        f"{scenario.name:62}", "  ".join(f"{name} {value['median']:.4g}" for name, value in found.items()), flush=True
    )
    flops = measure_products(*scenario.queries_and_tokens) if scenario.queries_and_tokens else None
    return {"scenario": scenario.name, "measured": found, "flops_of_products": flops}


if __name__ == "__main__":
    main()
