"""`antefix serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from antefix.errors import ConfigError
from antefix.vllm.settings import ADMIN_KEY, USUAL_RESIDENT_PREFIXES, check_version


def serve(
    context: typer.Context,
    base: Annotated[str, typer.Argument(help="Base model: a Hub name, a folder, or 'embedded'.")],
    prefix: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FILE", help="A prefix and the name to request it by; repeat it.")
    ] = None,
    prefix_dir: Annotated[
        Path | None,
        typer.Option(
            help="Serve every .safetensors file in this directory under its name, and load added ones from it."
        ),
    ] = None,
    admin_key: Annotated[
        str | None,
        typer.Option(
            envvar=ADMIN_KEY,
            help="The key to add, replace and remove prefixes through /v1/prefixes; without one, nobody can. Better "
            "set in the environment than on a command line.",
        ),
    ] = None,
    max_resident_prefixes: Annotated[
        int, typer.Option(min=1, help="Maximum prefixes that a worker keeps in its host memory.")
    ] = USUAL_RESIDENT_PREFIXES,
) -> None:
    """Serve prefixes on vLLM with the OpenAI API, each under its own name; all other options are vLLM's."""
    from antefix.vllm.launch import run_server, server_settings
    from antefix.vllm.prefixes import Prefixes, files_in
    from antefix.vllm.roster import posted_roster

    if base.startswith("-"):  # an option of vLLM's, of which nobody here knows whether a value follows
        raise ConfigError(f"'{base}' stands where the base model does; it comes first: antefix serve MODEL {base} ...")
    check_version()
    files = files_in(prefix_dir) if prefix_dir is not None else {}
    for entry in prefix or []:
        name, equals, file = entry.partition("=")
        if not equals or not file:
            raise ConfigError(f"--prefix is '{entry}'; it must be NAME=FILE, such as legal=legal.safetensors.")
        if name in files:
            raise ConfigError(f"two prefixes are named '{name}'.")
        files[name] = Path(file)
    prefixes = Prefixes(base, files)
    settings = server_settings(base, max_resident_prefixes, context.args)
    if taken := set(files).intersection(settings.served_model_name):
        raise ConfigError(f"'{taken.pop()}' is the base model's name; give the prefix another.")
    if admin_key:
        os.environ[ADMIN_KEY] = admin_key
    for ticket in prefixes.values():
        typer.echo(f"{ticket.name}: {ticket.num_virtual_tokens} virtual tokens")
    with posted_roster(base, prefixes, prefix_dir):
        run_server(settings)
