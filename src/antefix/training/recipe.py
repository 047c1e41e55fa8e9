"""`Recipe`: everything that decides how a prefix is trained, in one file that can be kept beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from antefix.config import PrefixConfig
from antefix.errors import ConfigError
from antefix.training.schedule import Schedule
from antefix.training.settings import (
    build,
    check_above_zero,
    check_at_least,
    check_types,
    overridden,
    read_settings,
)

TaskName = Literal["text", "classification"]
TASKS = get_args(TaskName)


@dataclass(frozen=True)
class Recipe(Schedule):
    """How a prefix is trained; the defaults are recommended. Raises `ConfigError` for settings that cannot be.

    `prompt` and `answer` are templates over the fields of the examples, such as `"Q: {question} A:"`; `messages` names
    the field of a conversation instead. With `task="classification"` the answer is a label. `data_config` and
    `data_split` choose from a dataset. Without `eval_data` or `eval_split`, a tenth of the examples, drawn by the seed,
    is held out, at most about 200. `num_examples` uses only this many examples, the first ones. `truncation` cuts
    examples of more than `max_length` tokens. `head_learning_rate` is that of modules trained beside the prefix.
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
    head_learning_rate: float = 1e-3
    gradient_checkpointing: bool = False
    max_length: int = 1024
    truncation: bool = False
    exact_match: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.prefix, Mapping):
            object.__setattr__(self, "prefix", build(PrefixConfig, self.prefix, "prefix"))
        if not isinstance(self.prefix, PrefixConfig):
            raise ConfigError(f"prefix is {self.prefix!r}; it must be a PrefixConfig or a mapping of its settings.")
        check_types(self, but=("prefix", "task"))
        self.check_schedule()
        check_above_zero(self, "head_learning_rate", "max_length")
        check_at_least(1, self, "num_examples")
        self._check_wording()

    def _check_wording(self) -> None:
        if self.task not in TASKS:
            raise ConfigError(f"task is {self.task!r}; it must be one of {', '.join(map(repr, TASKS))}.")
        for name in ("exact_match", "answer_tokenizer"):
            if self.task == "classification" and getattr(self, name):
                raise ConfigError(
                    f"{name} is of answers that are written; a classification has labels, so leave it out."
                )
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
        return cls.from_settings(read_settings(path), **overrides)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], **overrides: Any) -> Recipe:
        """Build a recipe from a mapping, with overrides as in `from_yaml`."""
        made: Recipe = build(cls, overridden(settings, overrides), "the recipe", required=("model", "data"))
        return made

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as plain data, as `from_settings` takes it."""
        return asdict(self)
