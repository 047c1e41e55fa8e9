"""What vLLM makes of antefix's settings: no setting of its own puts another connector in the place of antefix's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from vllm.entrypoints.cli.serve import ServeSubcommand

from antefix.embedded import model_path
from antefix.errors import ConfigError
from antefix.vllm.launch import parse, server_arguments
from tests.vllm.conftest import ENVIRONMENT

CONFIGURE = """
import json, sys
from vllm.engine.arg_utils import EngineArgs
from antefix.vllm import engine_args
arguments = json.loads(sys.argv[1])
EngineArgs(max_model_len=256, **arguments, **engine_args()).create_engine_config()
print("configured")
"""


@pytest.mark.parametrize("spelling", ["--kv-offloading-size", "--kv-offloading-s", "--config"])
def test_offloading_of_vllms_own_is_refused(spelling: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("kv-offloading-size: 1.0\n")
    arguments = server_arguments("embedded", 3, [spelling, str(file) if spelling == "--config" else "1.0"])
    with pytest.raises(ConfigError, match="kv_offloading_size is set"):
        parse(ServeSubcommand(), arguments)


def test_other_arguments_are_vllms() -> None:
    parsed = parse(ServeSubcommand(), server_arguments("embedded", 3, ["--port", "8001", "--middleware", "a.Other"]))
    assert (parsed.port, parsed.kv_transfer_config.kv_connector) == (8001, "AntefixConnector")
    assert parsed.middleware == ["antefix.vllm.middleware.PrefixMiddleware", "a.Other"]  # the last one is outermost
    with pytest.raises(SystemExit):
        parse(ServeSubcommand(), server_arguments("embedded", 3, ["no option"]))


@pytest.mark.parametrize(
    ("arguments", "plugins", "about"),
    [
        ("{}", None, "configured"),
        ("{}", "somebody_elses", "configured"),
        ('{"kv_offloading_size": 1.0}', None, "OffloadingConnector not found in antefix.vllm.connector"),
    ],
    ids=["as it is", "without antefix's plugin", "offloading"],
)
def test_an_engine_has_antefixs_connector_or_does_not_start(arguments: str, plugins: str | None, about: str) -> None:
    code = CONFIGURE.replace("**arguments", f"model={str(model_path())!r}, **arguments")
    environment = ENVIRONMENT | ({"VLLM_PLUGINS": plugins} if plugins else {})
    done = subprocess.run(
        [sys.executable, "-c", code, arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert about in done.stdout + done.stderr
