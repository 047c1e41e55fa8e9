"""Runs in processes of their own, of which nothing is run again that has its figures."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, Protocol

import torch
import transformers


class Kept(Protocol):
    """Something to run, whose figures are kept in a file."""

    @property
    def file_name(self) -> str:
        """The name of the file: the same for the same run."""

    @property
    def is_done(self) -> bool:
        """Whether its figures are there."""

    def figures(self) -> dict[str, Any]:
        """Return its figures; run it first, if it was not run."""


def run_all(runs: Sequence[Kept], workers: int) -> None:
    """Run what was not run yet, so many at a time."""
    pending = list({run.file_name: run for run in runs if not run.is_done}.values())
    started = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start_worker) as pool:
        futures = {pool.submit(run.figures): run for run in pending}
        for number, future in enumerate(as_completed(futures), start=1):
            found = future.result()
            print(f"{number}/{len(pending)} {time.monotonic() - started:.0f} s  {futures[future]}", flush=True)
            print("   ", json.dumps(found.get("scores") or found.get("questions")), flush=True)


def _start_worker() -> None:
    torch.set_num_threads(1)
    os.environ["TQDM_DISABLE"] = "1"
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
