"""Runs in processes of their own; nothing is run again that the ledger has."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch
import transformers

from benchmarks.environment import environment
from benchmarks.quality.ledger import Ledger, Measurable


def run_all(runs: Sequence[Measurable], ledger: Ledger, workers: int) -> None:
    """Run what the ledger does not have yet, so many at a time, and record each as soon as it is done."""
    pending = list({str(run.identity): run for run in runs if run not in ledger}.values())
    started, depends_on = time.monotonic(), environment(1)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start_worker) as pool:
        futures = {pool.submit(run.execute): run for run in pending}
        for number, future in enumerate(as_completed(futures), start=1):
            if future.exception() is not None:  # what is running ends, nothing else begins
                pool.shutdown(cancel_futures=True)
            found, run = future.result(), futures[future]
            ledger.record(run, found, depends_on)
            print(f"{number}/{len(pending)} {time.monotonic() - started:.0f} s  {run}", flush=True)
            print("   ", json.dumps(found.get("scores") or found.get("questions")), flush=True)


def _start_worker() -> None:
    torch.set_num_threads(1)
    os.environ["TQDM_DISABLE"] = "1"
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
