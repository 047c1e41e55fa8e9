"""`Recipe`: everything that decides how a prefix is trained, in one file that can be kept beside it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from antefix.config import PrefixConfig
from antefix.errors import ConfigError
from antefix.prefix import Prefix

TaskName = Literal["text", "classification"]
TASKS = get_args(TaskName)
MOST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Recipe:
    """How a prefix is trained; the defaults are the recommended ones. Raises `ConfigError` for what cannot be.

    `prompt` and `answer` are templates over the fields of the examples, such as `"Q: {question} A:"`; `messages` names
    the field of a conversation instead. With `task="classification"` the answer is a label. `data_config` and
    `data_split` choose from a dataset. Without `eval_data` or `eval_split`, every tenth example is held out, at most
    200. `num_examples` uses that many first examples. `truncation` cuts examples of more than `max_length` tokens.
    """

    model: str
    data: str
    prompt: str | None = None
    answer: str | None = None
    messages: str | None = None
    task: TaskName = "text"
    data_config: str | None = None
    data_split: str | None = None
    eval_split: str | None = None
    output: str = "runs/prefix"
    name: str = "prefix"
    prefix: PrefixConfig = field(default_factory=PrefixConfig)
    eval_data: str | None = None
    answer_tokenizer: str | None = None
    num_examples: int | None = None
    learning_rate: float = 5e-3
    epochs: float = 3.0
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    weight_decay: float = 0.0
    warmup_ratio: float = 0.03
    max_grad_norm: float = 1.0
    max_length: int = 1024
    truncation: bool = False
    exact_match: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.prefix, Mapping):
            object.__setattr__(self, "prefix", _build(PrefixConfig, self.prefix, "prefix"))
        for setting in fields(self):
            if setting.name not in ("prefix", "task"):
                value = _typed(setting.name, str(setting.type), getattr(self, setting.name))
                object.__setattr__(self, setting.name, value)
        for name in (
            "learning_rate",
            "epochs",
            "batch_size",
            "gradient_accumulation_steps",
            "max_length",
            "max_grad_norm",
        ):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be above 0.")
        for name in ("seed", "weight_decay", "warmup_ratio"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be 0 or more.")
        if self.seed > MOST_SEED:
            raise ConfigError(f"seed is {self.seed}; it must be at most {MOST_SEED}.")
        if self.num_examples is not None and self.num_examples < 1:
            raise ConfigError(f"num_examples is {self.num_examples!r}; it must be 1 or more.")
        self._check_wording()

    def _check_wording(self) -> None:
        if self.task not in TASKS:
            raise ConfigError(f"task is {self.task!r}; it must be one of {', '.join(map(repr, TASKS))}.")
        if self.messages is None:
            for name in ("prompt", "answer"):
                if getattr(self, name) is None:
                    raise ConfigError(f"the recipe lacks '{name}'; say it in the file or as --{name}.")
        elif self.prompt is not None or self.answer is not None:
            raise ConfigError("messages is given, so the chat template writes prompt and answer; leave those out.")
        elif self.task == "classification":
            raise ConfigError("task is 'classification', which takes prompt and answer, not messages.")

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], **overrides: Any) -> Recipe:
        """Read a recipe; `overrides` that are not None replace what the file says, `prefix` field by field."""
        try:
            settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"the recipe '{path}' cannot be read: {error.strerror}.") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"the recipe '{path}' is not valid YAML: {' '.join(str(error).split())}.") from error
        if not isinstance(settings, dict):
            raise ConfigError(f"the recipe '{path}' must be a mapping of settings to values.")
        return cls.from_settings(settings, **overrides)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], **overrides: Any) -> Recipe:
        """Build a recipe from a mapping, with overrides as in `from_yaml`."""
        prefix = settings.get("prefix") or {}
        if not isinstance(prefix, Mapping):
            raise ConfigError("'prefix' in a recipe must be a mapping of PrefixConfig's settings to values.")
        prefix = {**prefix, **_given(overrides.pop("prefix", {}))}
        made: Recipe = _build(cls, {**settings, **_given(overrides), "prefix": prefix}, "the recipe")
        return made

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as plain data, as `from_settings` takes it."""
        return asdict(self)


def trained_with(prefix: Prefix) -> Mapping[str, Any]:
    """Return the recipe that a prefix was trained with, as far as its file tells; nothing in it is checked."""
    settings = prefix.metadata.get("training")
    return settings if isinstance(settings, Mapping) else {}


def _typed(name: str, kind: str, value: Any) -> Any:
    """Return a setting as its type; YAML reads 1e-3 as text, so a number may come as one."""
    if value is None and kind.endswith("| None"):
        return None
    kind = kind.removesuffix(" | None")
    if kind == "float" and not isinstance(value, bool):
        try:
            if math.isfinite(number := float(value)):
                return number
        except (TypeError, ValueError):
            pass
    elif type(value).__name__ == kind and value != "":
        return value
    wanted = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "text"}[kind]
    raise ConfigError(f"{name} is {value!r}; it must be {wanted}.")


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _build(cls: type[Any], settings: Mapping[str, Any], where: str) -> Any:
    known = {item.name: item for item in fields(cls)}
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise ConfigError(f"{where} has no setting '{unknown[0]}'; it knows {', '.join(known)}.")
    required = ("model", "data") if cls is Recipe else ()
    missing = [name for name in required if name not in settings]
    if missing:
        raise ConfigError(f"{where} lacks '{missing[0]}'; say it in the file or as --{missing[0]}.")
    try:
        return cls(**settings)
    except TypeError as error:
        raise ConfigError(f"{where} has a setting of the wrong type: {error}.") from error
