"""Run the benchmarks: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.scenarios import SCENARIOS
from benchmarks.timing import interleave


def main() -> None:
    """Measure every scenario, print ratios to the bare base, and write JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--output", type=Path, help="JSON file to write the figures to")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds a scenario (default: 7)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--only", default="", help="run only scenarios whose name contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    results = []
    for scenario in SCENARIOS:
        if arguments.only not in scenario.name:
            continue
        timings = interleave(scenario.build(), arguments.rounds)
        base = timings["base"]["median_s"]
        ratios = {name: round(timing["median_s"] / base, 3) for name, timing in timings.items()}
        results.append({"scenario": scenario.name, "timings": timings, "ratio_to_base": ratios})
        print(f"{scenario.name:44}", "  ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()), flush=True)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(environment(arguments.threads) | {"results": results}, indent=2) + "\n")


def environment(threads: int) -> dict[str, Any]:
    """Return what the figures depend on: versions, processor, threads, commit."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "versions": {name: version(name) for name in ("antefix", "torch", "transformers", "peft")},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": threads,
        "commit": commit,
    }


if __name__ == "__main__":
    main()
