"""The `antefix` command, and how it says that something went wrong."""

from __future__ import annotations

import traceback
from typing import Any

import torch
import transformers
import typer
from typer.core import TyperGroup

from antefix import __version__
from antefix.cli.compose import compose
from antefix.cli.convert import convert
from antefix.cli.demo import demo
from antefix.cli.distill import distill
from antefix.cli.evaluate import evaluate
from antefix.cli.generate import generate
from antefix.cli.inspect import inspect
from antefix.cli.lines import say, stopping
from antefix.cli.serve import serve
from antefix.cli.train import train
from antefix.cli.walkthrough import walkthrough
from antefix.errors import AntefixError


class _Commands(TyperGroup):
    """Turns antefix's own errors into one sentence and an exit status; any other keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        try:
            with stopping():
                return super().invoke(ctx)
        except BrokenPipeError:
            raise  # whoever reads the output has read enough; typer ends quietly
        except (AntefixError, OSError) as error:
            say("error", str(error))
            raise typer.Exit(1) from error
        except UnicodeEncodeError as error:
            say("error", _unwritable(error))
            raise typer.Exit(1) from error
        except RuntimeError as error:
            if not _is_failed_write(error):
                raise
            say("error", "a checkpoint could not be written; make room on the disk, and go on by --resume.")
            raise typer.Exit(1) from error


def _unwritable(error: UnicodeEncodeError) -> str:
    """Say what could not be written: a sign that the terminal's or the pipe's encoding lacks, or a path's odd byte."""
    sign = ascii(error.object[error.start : error.end])
    if error.encoding == "utf-8":
        return f"a name or a path holds {sign}, bytes that are no UTF-8; rename it."
    return f"the output holds {sign}, which its encoding does not have; set PYTHONIOENCODING=utf-8."


def _is_failed_write(error: RuntimeError) -> bool:
    """Return whether torch failed to write an archive, for which it raises a `RuntimeError` with any text."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code is torch.save.__code__ for frame, _ in frames)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"antefix {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Prefix-tuning for every Transformers model.",
)


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Prefix-tuning for every Transformers model."""


app.command()(demo)
app.command()(train)
app.command()(distill)
app.command()(generate)
app.command()(compose)
app.command()(convert)
app.command()(evaluate)
app.command()(inspect)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)
app.command()(walkthrough)
