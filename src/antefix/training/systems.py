"""What is evaluated together: systems on one base model, and the wording that their prefixes were trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antefix.errors import ConfigError
from antefix.prefix import Prefix
from antefix.storage import verify_prefix
from antefix.training.provenance import Provenance
from antefix.training.recipe import Recipe
from antefix.training.templates import unescape

SHARED_SETTINGS = ("model", "task", "prompt", "answer", "messages", "answer_tokenizer")
"""The settings that all systems of an evaluation have in common, and that a prefix's recipe tells."""


@dataclass(frozen=True)
class System:
    """What is evaluated: a base model, with or without a prefix of its bank, and with a text before each prompt."""

    name: str
    prefix: str | None = None
    text: str = ""


def read_prefixes(given: Sequence[str]) -> dict[str, Prefix]:
    """Read prefixes given as `FILE` or `NAME=FILE`, by name.

    Without a name, a prefix is named after its file, or, if that is `prefix.safetensors`, after the file's folder.
    Raises `ConfigError` for two prefixes of the same name or an empty name, `PrefixFormatError` for a file that is no
    intact prefix file.
    """
    prefixes: dict[str, Prefix] = {}
    for argument in given:
        name, separator, file = argument.partition("=")
        if not separator or Path(argument).is_file():
            path = Path(argument)
            name, file = path.stem if path.stem != "prefix" else path.absolute().parent.name, argument
        if not name or not file:
            raise ConfigError(f"a prefix is given as '{argument}'; it must be FILE or NAME=FILE.")
        if name in prefixes:
            raise ConfigError(f"two prefixes are named '{name}'; name them as NAME=FILE.")
        prefixes[name] = verify_prefix(file)
    return prefixes


def read_texts(given: Sequence[str]) -> list[System]:
    r"""Return a system for each text, which is given literally, with \n for a line break, or as the name of a file."""
    texts = [_read_text(text) for text in given]
    return [System("text" if len(texts) == 1 else f"text {n}", text=text) for n, text in enumerate(texts, start=1)]


def recipe_for(data: str, prefixes: Mapping[str, Prefix], given: Mapping[str, Any]) -> Recipe:
    """Return the recipe to evaluate by: the settings given, and in place of None those all prefixes were trained with.

    Raises `ConfigError` if the prefixes were trained with different settings, or do not tell.
    """
    settings = {name: value for name, value in given.items() if value is not None}
    replaced = {"messages"} if {"prompt", "answer"} & set(settings) else set()
    if "messages" in settings:
        replaced = {"prompt", "answer"}
    for name in SHARED_SETTINGS:
        if name not in settings and name not in replaced:
            settings[name] = _shared_setting(name, prefixes)
    for name in ("model",) if settings.get("messages") else ("model", "prompt", "answer"):
        if settings.get(name) is None:
            raise ConfigError(f"no prefix tells with which {name} it was trained; give --{name}.")
    return Recipe.from_settings({}, data=data, **settings)


def shared_labels(prefixes: Mapping[str, Prefix]) -> list[str] | None:
    """Return the labels that all prefixes were trained to choose from, in the order of their heads; None without any.

    Raises `ConfigError` if the labels differ, or if a prefix has a head and does not tell its labels.
    """
    for name, held in prefixes.items():
        if held.modules and "labels" not in held.metadata:
            raise ConfigError(
                f"the prefix '{name}' brings a head and does not tell which labels it chooses from; save it with "
                "metadata={'labels': [...]}, in the order of the head."
            )
    told = [held.metadata["labels"] for held in prefixes.values() if "labels" in held.metadata]
    if not all(isinstance(labels, list) and labels for labels in told):
        raise ConfigError("a prefix tells of labels that are no list, so it cannot choose among them.")
    if any(labels != told[0] for labels in told):
        raise ConfigError(f"the prefixes choose from different labels: {' and '.join(map(str, told))}.")
    return list(map(str, told[0])) if told else None


def _shared_setting(name: str, prefixes: Mapping[str, Prefix]) -> Any:
    """Return what all prefixes that tell of a setting were trained with; None if none tells."""
    provenances = {prefix: Provenance.of(held) for prefix, held in prefixes.items()}
    told: dict[str, Any]
    if name == "model":
        told = {prefix: made.base_model for prefix, made in provenances.items() if made.base_model}
    else:
        told = {prefix: made.wording.get(name) for prefix, made in provenances.items() if made.wording}
    values = list(told.values())
    if any(value != values[0] for value in values):
        each = ", ".join(f"'{prefix}' with {value!r}" for prefix, value in told.items())
        raise ConfigError(f"the prefixes differ in {name}: {each}; say which as --{name.replace('_', '-')}.")
    return values[0] if values else None


def _read_text(text: str) -> str:
    path = Path(text)
    try:
        is_file = path.is_file()
    except OSError:  # it is too long to be a path
        is_file = False
    if is_file:
        try:
            return path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the text '{text}' cannot be read: {error}.") from error
    if path.suffix in (".txt", ".md") and not any(map(str.isspace, text)):
        raise ConfigError(f"there is no text file '{text}'.")
    return unescape(text)
