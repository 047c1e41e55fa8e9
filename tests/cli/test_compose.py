"""`antefix compose`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import antefix
from antefix.initialize import random_prefix
from antefix.sites import Site
from tests.cli.conftest import Invoke

SITES = (Site("a", "decoder", 0, 2, 6, 4),)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "first.safetensors", tmp_path / "second.safetensors"]
    for path in paths:
        antefix.save_prefix(random_prefix(SITES, 3), path)
    return paths


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], lambda first, second: torch.cat([first, second], dim=1)),
        (["--tokens", "1:"], lambda first, second: torch.cat([first[:, 1:], second], dim=1)),
        (["--average"], lambda first, second: (first + second) / 2),
        (["--average", "--weight", 1, "--weight", 3, "--tokens", ":2"], lambda a, b: (a / 4 + b * 3 / 4)[:, :2]),
    ],
)
def test_compose(options: list[object], expected, files: list[Path], tmp_path: Path, invoke: Invoke) -> None:
    output = tmp_path / "out" / "both.safetensors"
    finished = invoke("compose", *files, "--output", output, *options)
    assert finished.exit_code == 0
    first, second, made = (antefix.load_prefix(path).keys["a"] for path in (*files, output))
    torch.testing.assert_close(made, expected(first, second))
    assert f"{made.shape[1]} virtual tokens" in finished.output
    kind = "average, weights=[" if "--average" in options else "concat, num_virtual_tokens=[3, 3]"
    assert f"kind={kind}" in " ".join(invoke("inspect", output).output.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weight", 1], "--weight is for --average"),
        (["--average", "--weight", 1], "must be 2 numbers"),
        (["--tokens", "3"], "it must be START:STOP"),
        (["--tokens", "a:b"], "it must be START:STOP"),
        (["--tokens", "6:"], "no part of 6 virtual tokens"),
    ],
)
def test_bad_input(options: list[object], message: str, files: list[Path], tmp_path: Path, invoke: Invoke) -> None:
    output = tmp_path / "both.safetensors"
    finished = invoke("compose", *files, "--output", output, *options)
    assert finished.exit_code == 1
    assert message in finished.output
    assert not output.exists()


def test_only_a_prefix_is_replaced(files: list[Path], tmp_path: Path, invoke: Invoke) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"a": 1}\n')
    finished = invoke("compose", *files, "--output", data)
    assert finished.exit_code == 1
    assert "holds no prefix, so it is not replaced" in finished.stderr
    assert data.read_text() == '{"a": 1}\n'
    assert invoke("compose", *files, "--output", files[0]).exit_code == 0
    assert antefix.load_prefix(files[0]).num_virtual_tokens == 6


def test_files_that_were_changed_since_they_were_saved_are_refused(
    files: list[Path], tmp_path: Path, invoke: Invoke
) -> None:
    """Else what is made of them would be whole by its own hash."""
    whole, output = files[0].read_bytes(), tmp_path / "out"
    files[0].write_bytes(whole[:-2] + bytes([whole[-2] ^ 1, whole[-1]]))
    convert = ("convert", "--prefix", files[0], "--model", "embedded", "--output", output)
    for command in (("compose", *files, "--output", output), convert):
        refused = invoke(*command)
        assert refused.exit_code == 1
        assert "holds other numbers than it was saved with" in " ".join(refused.output.split())
        assert not output.exists()
