"""Starting vLLM's server with the settings that prefixes need."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from antefix.errors import ConfigError
from antefix.sources import source_of
from antefix.vllm.settings import engine_args

if TYPE_CHECKING:
    from vllm.entrypoints.cli.serve import ServeSubcommand

_ANY_NAME = "VLLM_SKIP_MODEL_NAME_VALIDATION"


def server_arguments(base: str, max_resident_prefixes: int, passed_on: Sequence[str]) -> list[str]:
    """Return the arguments of `vllm serve`.

    Raises `ConfigError` for one that antefix sets itself, and where vLLM would answer for any name.
    """
    given = {argument.partition("=")[0].replace("_", "-") for argument in passed_on if argument.startswith("--")}
    if any(argument.split(".")[0] == "--kv-transfer-config" for argument in given):
        raise ConfigError("--kv-transfer-config is antefix's own: the prefixes come through it.")
    if os.environ.get(_ANY_NAME, "0") not in ("", "0"):
        raise ConfigError(f"{_ANY_NAME} is set, and would let the bare base answer for a name that is no prefix.")
    transfer = engine_args(max_resident_prefixes)["kv_transfer_config"]
    named = [] if base != "embedded" or "--served-model-name" in given else ["--served-model-name", base]
    source = source_of(base)
    # Before other middleware, which then is around it: what compresses answers, say, comes after what changes them.
    middleware = ["--middleware", "antefix.vllm.middleware.PrefixMiddleware"]
    return [source, *named, *middleware, *passed_on, "--kv-transfer-config", json.dumps(transfer)]


def served_names(base: str, passed_on: Sequence[str]) -> list[str]:
    """Return the names under which vLLM will serve the base model itself."""
    names: list[str] = []
    collecting = False
    for argument in passed_on:
        flag, _, value = argument.partition("=")
        if argument.startswith("-"):
            collecting = flag.replace("_", "-") == "--served-model-name"
            names += [value] if collecting and value else []
        elif collecting:
            names.append(argument)
    return names or [base]


def run_server(arguments: Sequence[str]) -> None:
    """Run `vllm serve` in this process until it is stopped."""
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    from vllm.entrypoints.cli.serve import ServeSubcommand

    command = ServeSubcommand()
    parsed = parse(command, arguments)
    command.validate(parsed)
    command.cmd(parsed)


def parse(command: ServeSubcommand, arguments: Sequence[str]) -> argparse.Namespace:
    """Return what vLLM takes its arguments for, and what its --config files say; raises `ConfigError`."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="antefix")
    command.subparser_init(parser.add_subparsers(required=True, dest="subparser"))
    parsed: argparse.Namespace = parser.parse_args([command.name, *arguments])
    if parsed.kv_offloading_size is not None:
        raise ConfigError(
            "kv_offloading_size is set, and vLLM would offload its cache by another connector in the place of "
            "antefix's, through which the prefixes come; leave it out."
        )
    return parsed
