"""Where base models come from: the hub, a folder, or antefix itself; and what is said of one that does not come."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from antefix.embedded import model_path
from antefix.errors import ConfigError, on_one_line


def source_of(name: str) -> str:
    """Return what `from_pretrained` takes for a name; 'embedded' is the model inside."""
    return str(model_path()) if name == "embedded" else name


@contextmanager
def reporting_failure(kind: str, name: str) -> Iterator[None]:
    """Raise `ConfigError`, one sentence, for whatever loading a model, tokenizer or configuration raises."""
    if name.startswith((".", "/", "~")) and not Path(name).exists():  # which is no name that a hub has
        raise ConfigError(f"the {kind} '{name}' cannot be loaded: there is nothing at this path.")
    try:
        yield
    except Exception as error:  # a damaged file makes libraries raise anything
        said = on_one_line(error) or type(error).__name__
        raise ConfigError(f"the {kind} '{name}' cannot be loaded: {said}") from error
