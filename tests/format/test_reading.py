"""Prefix files that change while they are read, and large files that are none."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import antefix
from antefix.initialize import random_prefix
from antefix.sites import Site
from antefix.storage import verify_prefix

SITES = (Site("layer", "decoder", 0, 4, 64, 64),)
CUT_SHORT = """
import json, os, sys, antefix
path, loads = sys.argv[1], json.loads
def cut_and_parse(text):
    os.truncate(path, 0)  # as `cp` begins
    return loads(text)
json.loads = cut_and_parse
try:
    antefix.load_prefix(path)
except antefix.PrefixFormatError as error:
    print(error)
"""


def test_a_file_that_is_written_over_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    antefix.save_prefix(random_prefix(SITES, 256), path)
    command = [sys.executable, "-W", "ignore", "-c", CUT_SHORT, str(path)]  # a mapped file would end its reader
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "not an intact safetensors file" in done.stdout) == (0, True), done.stderr


def test_a_file_that_is_replaced_while_it_is_verified_is_one_or_the_other(tmp_path: Path) -> None:
    path, stop = tmp_path / "p.safetensors", threading.Event()
    both = [random_prefix(SITES, 5), random_prefix(SITES, 10)]
    antefix.save_prefix(both[0], path)

    def replace() -> None:
        while not stop.is_set():
            for other in both:
                antefix.save_prefix(other, path)

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        assert {verify_prefix(path).num_virtual_tokens for _ in range(300)} <= {5, 10}
    finally:
        stop.set()
        writer.join()


def test_what_is_no_prefix_is_refused_before_its_numbers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with path.open("r+b") as file:
        file.truncate(2**40)  # a hole, which no memory would hold
    with pytest.raises(antefix.PrefixFormatError, match="not a prefix file"):
        antefix.load_prefix(path)
