"""What vLLM makes of antefix's settings: no setting of its own puts another connector in the place of antefix's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import antefix
from antefix.cli.main import app
from antefix.embedded import model_path
from antefix.errors import ConfigError
from antefix.vllm import Prefixes
from antefix.vllm.launch import MIDDLEWARE, server_settings
from tests.unit.vllm.test_prefixes import some_prefix

CONFIGURE = """
import json, sys
from vllm.engine.arg_utils import EngineArgs
from antefix.vllm import engine_args
arguments = json.loads(sys.argv[1])
EngineArgs(max_model_len=256, **arguments, **engine_args()).create_engine_config()
print("configured")
"""


def given(arguments: list[str], file: Path) -> list[str]:
    """Return arguments as they are, or what reads the same from a file."""
    if arguments[0] != "--config":
        return arguments
    file.write_text(f"{arguments[1]}\n")
    return ["--config", str(file)]


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        (["--kv-offloading-size", "1.0"], "kv_offloading_size"),
        (["--kv-offloading-s", "1.0"], "kv_offloading_size"),
        (["--config", "kv-offloading-size: 1.0"], "kv_offloading_size"),
        (["--kv-transfer-config", "{}"], "kv_transfer_config"),
        (["--kv-transfer-c", "{}"], "kv_transfer_config"),
        (["--kv-transfer-config.kv_connector=Other", "--kv-transfer-config.kv_role=kv_both"], "kv_transfer_config"),
        (["--config", "kv-transfer-config: '{}'"], "kv_transfer_config"),
        (["--grpc"], "grpc"),
    ],
    ids=str,
)
def test_what_would_bypass_antefix_is_refused(arguments: list[str], setting: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{setting} is set, and .*; leave it out.$"):
        server_settings("embedded", 3, given(arguments, tmp_path / "config.yaml"))


@pytest.mark.parametrize(
    "arguments",
    [["--served-model-name", "a", "p", "-tp", "2"], ["--served-model", "p"], ["--config", "served-model-name: p"]],
    ids=str,
)
def test_a_prefix_has_no_name_of_the_bases(arguments: list[str], tmp_path: Path) -> None:
    prefix = saved_prefix(tmp_path / "p.safetensors")
    command = ["serve", "embedded", "--prefix", f"p={prefix}", *given(arguments, tmp_path / "config.yaml")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "'p' is the base model's name; give the prefix another." in result.output


def saved_prefix(path: Path) -> Path:
    antefix.save_prefix(some_prefix(Prefixes("embedded").sites), path)
    return path


@pytest.mark.parametrize("from_file", [False, True])
def test_other_arguments_are_vllms(from_file: bool, tmp_path: Path) -> None:
    arguments = (
        ["--config", "port: 8001\nmiddleware: a.Other"] if from_file else ["--port", "8001", "--middleware", "a.Other"]
    )
    settings = server_settings("embedded", 3, given(arguments, tmp_path / "config.yaml"))
    assert (settings.port, settings.kv_transfer_config.kv_connector) == (8001, "AntefixConnector")
    assert settings.kv_transfer_config.kv_connector_extra_config == {"max_resident_prefixes": 3}
    assert settings.middleware == [MIDDLEWARE, "a.Other"]  # the last one is outermost
    assert settings.served_model_name == ["embedded"]
    assert settings.model_tag == str(model_path())
    with pytest.raises(SystemExit):
        server_settings("embedded", 3, ["no option"])


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
    environment = os.environ | ({"VLLM_PLUGINS": plugins} if plugins else {})
    done = subprocess.run(
        [sys.executable, "-c", code, arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert about in done.stdout + done.stderr
