"""Where base models come from: the hub, a folder, or antefix itself; and what is said of one that does not come."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from antefix.embedded import model_path
from antefix.errors import ConfigError

_FAILURES = (
    OSError,
    ValueError,
    KeyError,
    SafetensorError,
    StrictDataclassError,
    ImportError,  # a quantised base without the library that reads it
    RuntimeError,  # weights of other sizes than the configuration says
    AttributeError,  # a configuration that is a list
    TypeError,
)


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
    except _FAILURES as error:
        raise ConfigError(f"the {kind} '{name}' cannot be loaded: {' '.join(str(error).split())}") from error
