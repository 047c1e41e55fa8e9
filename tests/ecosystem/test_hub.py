"""Pushing to the hub and loading from it, with the real client and a small stand-in for the hub on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

COMMIT = "0" * 40

PUSH = """
import sys
from pathlib import Path
import antefix
from antefix.training import PrefixTrainer
from tests.conftest import build_model, draw_ids
from transformers import TrainingArguments, default_data_collator

examples = [{"input_ids": row, "labels": row} for row in draw_ids(8, 7).tolist()]
model = build_model("llama")
model.config._name_or_path = "someone/small-llama"
bank = antefix.attach(model)
bank.add("p", antefix.PrefixConfig(5, init="random"))
arguments = TrainingArguments(
    output_dir=sys.argv[1], max_steps=2, report_to="none", disable_tqdm=True, use_cpu=True, remove_unused_columns=False,
    push_to_hub=True, hub_model_id="someone/small-prefix", hub_token="hf_test", save_strategy="steps", save_steps=1,
    logging_steps=1,
)
trainer = PrefixTrainer(
    bank, "p", args=arguments, train_dataset=examples, eval_dataset=examples, data_collator=default_data_collator
)
trainer.train()
trainer._finish_current_push()
print(sorted(path.name for path in Path(sys.argv[1]).glob("*.safetensors")))
trainer.evaluate()
trainer.push_to_hub(dataset="someone/small-data", license="apache-2.0")
"""

LOAD = """
import torch
import antefix
from huggingface_hub import hf_hub_download
from tests.conftest import build_model

bank = antefix.attach(build_model("llama"))
bank.load(hf_hub_download("someone/small-prefix", "prefix.safetensors"), name="prefix")
print(bank.prefix("prefix").num_virtual_tokens)
"""


class Hub(BaseHTTPRequestHandler):
    """Takes commits of small files and gives the files back."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_POST(self) -> None:
        """Create a repository, say how files shall come, or take a commit."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self._answer({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer({"commitUrl": f"{self._root}/someone/small-prefix/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self._answer({"url": f"{self._root}/someone/small-prefix", "name": "someone/small-prefix", "type": "model"})

    def do_HEAD(self) -> None:
        """Describe a file."""
        self._file(with_content=False)

    def do_GET(self) -> None:
        """Give a file, or say who asks."""
        if self.path.startswith("/api/whoami"):
            self._answer({"name": "someone", "type": "user", "orgs": []})
        elif self.path.startswith("/api/"):
            self._answer({"id": "someone/small-prefix", "sha": COMMIT, "siblings": []})
        else:
            self._file(with_content=True)

    def log_message(self, *args: object) -> None:
        """Stay quiet."""

    @property
    def _root(self) -> str:
        host, port = self.server.server_address[:2]
        return f"http://{host!s}:{port}"

    def _file(self, with_content: bool) -> None:
        name = self.path.rpartition("/resolve/main/")[2]
        content = self.files.get(name)
        self.send_response(200 if content is not None else 404)
        self.send_header("Content-Length", str(len(content or b"")))
        self.send_header("ETag", f'"{hashlib.sha1(content or b"", usedforsecurity=False).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_content and content is not None:
            self.wfile.write(content)

    def _answer(self, answer: object) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub() -> Iterator[str]:
    """Run the stand-in; give its address."""
    Hub.files.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def run(script: str, hub: str, home: Path, *arguments: str) -> str:
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
    environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    finished = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True, text=True, timeout=300, env=environment, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_push_and_load(hub: str, tmp_path: Path) -> None:
    while_training = run(PUSH, hub, tmp_path / "home", str(tmp_path / "run"))
    assert "['prefix.safetensors']" in while_training
    # Trainer adds its arguments, as it does for every model that it pushes while it trains.
    assert set(Hub.files) == {"README.md", "prefix.safetensors", "training_args.bin"}
    assert Hub.files["prefix.safetensors"] == (tmp_path / "run" / "prefix.safetensors").read_bytes()
    card = Hub.files["README.md"].decode()
    for expected in (
        "library_name: antefix", "- prefix-tuning", "- someone/small-data", "license: apache-2.0",
        "5 virtual tokens at 3 decoder layers", "| steps | 2 |", "| loss |",
        'hf_hub_download("someone/small-prefix", "prefix.safetensors")',
        'AutoModelForCausalLM.from_pretrained("someone/small-llama")', "base_model: someone/small-llama",
        "A prefix for `someone/small-llama`",
    ):  # fmt: skip
        assert expected in card
    assert "peft" not in card.lower()
    assert run(LOAD, hub, tmp_path / "other").strip() == "5"
