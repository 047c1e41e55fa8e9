"""`antefix convert`: a checkpoint folder of PEFT into a prefix file, or the other way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from antefix.cli.outputs import check_replaceable_file, check_replaceable_folder
from antefix.errors import ConfigError
from antefix.meta import shapes_only, task_of
from antefix.peft_format import read_config, read_peft, write_peft
from antefix.storage import save_prefix, verify_prefix


def convert(
    prefix: Annotated[Path, typer.Option(help="What to convert: a PEFT folder or a prefix file.")],
    output: Annotated[Path, typer.Option(help="The prefix file or PEFT folder to write; replaced if it exists.")],
    model: Annotated[
        str, typer.Option(help="Base model: a Hub name, a folder, a config.json, or 'embedded'; no weights are read.")
    ],
    base_model: Annotated[
        str | None, typer.Option(help="Name by which PEFT loads the base; by default, the one in the prefix.")
    ] = None,
    task_type: Annotated[
        str | None, typer.Option(help="PEFT's name for the task, such as CAUSAL_LM; by default, what the model is for.")
    ] = None,
) -> None:
    """Convert a PEFT checkpoint folder (prefix tuning or cartridge) to a prefix file, or the other way round."""
    from_peft = prefix.is_dir()
    if from_peft and (base_model or task_type):
        raise ConfigError("--base-model and --task-type are for PEFT's folder, and this writes a prefix file.")
    if from_peft and output.is_dir():
        raise ConfigError(f"'{output}' is a folder; a prefix is written into a file.")
    if from_peft:
        check_replaceable_file(output)
        config = read_config(prefix)
        told = config.get("auto_mapping")  # PEFT names the class of the base here where it was told no task
        made_of = told.get("base_model_class") if isinstance(told, dict) else None
        save_prefix(read_peft(prefix, shapes_only(model, config.get("task_type") or task_of(made_of))), output)
    else:
        check_replaceable_folder(output)
        loaded = verify_prefix(prefix)
        made_for = task_of(loaded.metadata.get("base_class"))
        write_peft(loaded, output, shapes_only(model, made_for), base_model=base_model, task_type=task_type)
    typer.echo(str(output))
