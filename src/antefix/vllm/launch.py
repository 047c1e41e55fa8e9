"""Starting vLLM's server with the settings that prefixes need."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from antefix.errors import ConfigError
from antefix.sources import source_of
from antefix.vllm.settings import engine_args

MIDDLEWARE = "antefix.vllm.middleware.PrefixMiddleware"
_REFUSED_VARIABLES = {
    "VLLM_SKIP_MODEL_NAME_VALIDATION": "would let the bare base answer for a name that is no prefix",
    "VLLM_USE_RUST_FRONTEND": "would have requests answered by a server in which antefix has no layer",
}
_REFUSED_SETTINGS = {
    "kv_transfer_config": "is antefix's own: the prefixes come through it",
    "kv_offloading_size": "would have vLLM offload its cache by another connector in the place of antefix's, through "
    "which the prefixes come",
    "grpc": "would have requests answered by a server in which antefix has no layer",
}


def server_settings(base: str, max_resident_prefixes: int, passed_on: Sequence[str]) -> argparse.Namespace:
    """Return the settings of `vllm serve`, which its arguments and a --config file give alike.

    Raises `ConfigError` for those that antefix sets itself, and for those by which an answer would miss its prefix.
    """
    for name, reason in _REFUSED_VARIABLES.items():
        if os.environ.get(name, "0") not in ("", "0"):
            raise ConfigError(f"{name} is set, and {reason}; leave it out.")
    transfer = engine_args(max_resident_prefixes)["kv_transfer_config"]
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    from vllm.config import KVTransferConfig

    settings = vllm_settings([source_of(base), *passed_on])
    for name, reason in _REFUSED_SETTINGS.items():
        if getattr(settings, name, None) not in (None, False):
            raise ConfigError(f"{name} is set, and {reason}; leave it out.")
    settings.kv_transfer_config = KVTransferConfig(**transfer)
    settings.served_model_name = settings.served_model_name or [base]
    # The last one is outermost: what compresses answers, say, comes after what changes them.
    settings.middleware = [MIDDLEWARE, *settings.middleware]
    return settings


def run_server(settings: argparse.Namespace) -> None:
    """Run `vllm serve` in this process until it is stopped."""
    from vllm.entrypoints.cli.serve import ServeSubcommand

    command = ServeSubcommand()
    command.validate(settings)
    command.cmd(settings)


def vllm_settings(arguments: Sequence[str]) -> argparse.Namespace:
    """Return what vLLM's own `serve` takes its arguments for."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="antefix")
    ServeSubcommand().subparser_init(parser.add_subparsers(required=True, dest="subparser"))
    parsed: argparse.Namespace = parser.parse_args([ServeSubcommand.name, *arguments])
    return parsed
