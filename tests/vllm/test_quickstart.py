"""The page about serving, step by step as a newcomer takes it, with the embedded model as the base."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vllm.conftest import ROOT
from tests.vllm.serving import ANTEFIX, KEY, serving

README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "docs" / "serving.md").read_text()
QUESTIONS = [{"question": f"What is {n}?", "answer": word} for n, word in enumerate(["one", "two", "three", "four"], 1)]


def command(name: str) -> list[str]:
    """Return the arguments of the page's first `antefix NAME`, for the embedded model."""
    (line, *_) = re.findall(rf"^antefix {name} (.*)$", PAGE, re.MULTILINE)
    return ["embedded" if word == "MODEL" else word for word in shlex.split(line)]


def python_block(about: str) -> str:
    (block,) = (block for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S) if about in block)
    return str(block)


def run(*arguments: str, folder: Path) -> str:
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which the page's training has been run."""
    folder = tmp_path_factory.mktemp("quickstart")
    (folder / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS * 8))
    run(*ANTEFIX, "train", *command("train"), folder=folder)
    return folder


def test_from_training_to_an_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(
        *ANTEFIX, "generate", "--model", "embedded", "--prefix", "runs/qa/prefix.safetensors", "--prompt",
        "Why is the sky blue?\n", "--max-new-tokens", "64", folder=folder,
    )  # fmt: skip
    arguments = command("serve")
    arguments[arguments.index("--port") :] = ["--dtype", "float32", "--enforce-eager"]
    monkeypatch.chdir(folder)
    with serving(arguments, folder / "server.log") as server:
        code = python_block("openai").replace("http://127.0.0.1:8000", server.url)
        code = code.replace('"none"', repr(KEY)).replace("max_tokens=64", "max_tokens=64, temperature=0")
        text, _, usage = run(sys.executable, "-c", code, folder=folder).partition(" CompletionUsage(")
    assert text.strip() == expected.strip()
    assert "virtual_tokens=32" in usage


def test_the_readme_serves_what_it_has_trained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server and the question that the README has, with a prefix under the name it gives."""
    shutil.copytree(folder / "runs" / "qa", folder / "runs" / "letter")
    (serve,) = re.findall(r"^antefix serve (.*) --host 127.0.0.1 --port 8000$", README, re.MULTILINE)
    (curl,) = re.findall(r"^curl .*$", README, re.MULTILINE)
    monkeypatch.chdir(folder)
    with serving([*shlex.split(serve), "--dtype", "float32", "--enforce-eager"], folder / "readme.log") as server:
        asked = curl.replace("localhost:8000", server.url.removeprefix("http://"))
        answered = json.loads(run(*shlex.split(asked), "-s", "-H", f"Authorization: Bearer {KEY}", folder=folder))
    assert answered["model"] == "letter"
    assert answered["usage"]["virtual_tokens"] == 32


def test_without_a_server(folder: Path) -> None:
    code = python_block("LLM(").replace('"MODEL"', "BASE")
    # The processes that vLLM starts read the file that started them.
    lines = "".join(f"    {line}\n" for line in code.splitlines())
    file = folder / "offline.py"
    file.write_text(
        "from antefix.embedded import model_path\nBASE = str(model_path())\nif __name__ == '__main__':\n" + lines
    )
    run(sys.executable, str(file), folder=folder)
