"""`Distillation`: everything that decides how a document becomes a prefix."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from antefix.config import PrefixConfig
from antefix.errors import ConfigError
from antefix.training.distillation.seeds import KINDS
from antefix.training.schedule import Schedule
from antefix.training.settings import build, check_at_least, check_types, overridden, read_settings

Objective = Literal["kl", "next-token"]
OBJECTIVES = get_args(Objective)
LONG = 2**20
"""A document of this many tokens is long enough for whatever a prefix may be set to."""


@dataclass(frozen=True)
class Distillation(Schedule):
    """How a document becomes a prefix (Cartridges, arXiv 2506.06266). Raises `ConfigError` for impossible settings.

    The base reads chunks of `chunk_length` tokens, by default half of the document, 64 to 4,096, and writes
    `num_lessons` lessons about them of the `kinds` given, drawn evenly, in parts of at most `max_new_tokens`. With
    `data`, it answers those questions instead, worded by `prompt` or `messages`. The prefix then learns to give the
    teacher's distribution of each token, of which `num_logits` are kept (`objective="kl"`), or the tokens alone
    (`"next-token"`). `eval_data` has questions to measure it by, with answers worded by `answer` or `messages`.
    `prefix` holds settings of `PrefixConfig`, or is one, of which only `num_virtual_tokens` and what differs from the
    default count. By default the prefix has a tenth of the document's tokens, and if it starts from text, its first
    token, the attention sink, stays as it is.
    """

    model: str
    document: str
    output: str = "runs/document"
    name: str = "document"
    prefix: Mapping[str, Any] = field(default_factory=dict)
    data: str | None = None
    eval_data: str | None = None
    prompt: str | None = None
    answer: str | None = None
    messages: str | None = None
    kinds: Sequence[str] = ("question", "question", "note", "summary")
    num_lessons: int = 1024
    chunk_length: int | None = None
    max_new_tokens: int = 128
    temperature: float = 1.0
    objective: Objective = "kl"
    num_logits: int = 20
    epochs: float = field(default=20.0, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.prefix, PrefixConfig):
            object.__setattr__(self, "prefix", _settings_of(self.prefix))
        if not isinstance(self.prefix, Mapping):
            raise ConfigError(f"prefix is {self.prefix!r}; it must be a PrefixConfig or a mapping of its settings.")
        if not isinstance(self.kinds, Sequence):
            raise ConfigError(f"kinds is {self.kinds!r}; it must be a list of {', '.join(map(repr, KINDS))}.")
        kinds = (self.kinds,) if isinstance(self.kinds, str) else tuple(self.kinds)
        object.__setattr__(self, "kinds", kinds)
        check_types(self, but=("prefix", "kinds", "objective"))
        for kind in kinds:
            if kind not in KINDS:
                raise ConfigError(f"kinds names {kind!r}; it may name {', '.join(map(repr, KINDS))}.")
        if not kinds:
            raise ConfigError("kinds is empty; name what the base is to write.")
        if self.objective not in OBJECTIVES:
            raise ConfigError(f"objective is {self.objective!r}; it must be {' or '.join(map(repr, OBJECTIVES))}.")
        self.check_schedule()
        check_at_least(1, self, "num_lessons", "chunk_length", "max_new_tokens", "num_logits")
        check_at_least(0, self, "temperature")
        self.prefix_config(num_tokens=LONG, text="any")
        self._check_wording()

    def _check_wording(self) -> None:
        asked = self.data is not None or self.eval_data is not None
        worded = self.prompt is not None or self.messages is not None
        if asked and not worded:
            raise ConfigError("data and eval_data hold questions, which prompt or messages must word.")
        if self.data is not None and self.chunk_length is not None:
            raise ConfigError(
                f"chunk_length is {self.chunk_length}, but the questions of data are answered with the whole document "
                "before them; leave one of the two out."
            )
        if worded and not asked:
            raise ConfigError("prompt and messages word the questions of data or eval_data; give one of those.")
        if self.prompt is not None and self.messages is not None:
            raise ConfigError("messages is given, so the chat template writes the questions; leave prompt out.")
        if self.eval_data is not None and self.answer is None and self.messages is None:
            raise ConfigError("the questions of eval_data need their answers; give answer, a template.")

    def prefix_config(self, num_tokens: int, text: str) -> PrefixConfig:
        """Return how the prefix is made for a document with this text and number of tokens."""
        settings = {"num_virtual_tokens": -(-num_tokens // 10), **self.prefix}
        if settings.get("init", "text") == "text":
            settings.setdefault("init_text", text)
            settings.setdefault("num_frozen_tokens", int(settings["num_virtual_tokens"] != 1))
        made: PrefixConfig = build(PrefixConfig, settings, "prefix")
        return made

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], **overrides: Any) -> Distillation:
        """Read settings from a file; `overrides` that are not None replace them, `prefix` field by field."""
        return cls.from_settings(read_settings(path), **overrides)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], **overrides: Any) -> Distillation:
        """Build from a mapping, with overrides as in `from_yaml`."""
        given = overridden(settings, overrides)
        made: Distillation = build(cls, given, "the recipe", required=("model", "document"))
        return made

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain data, as `from_settings` takes them."""
        return {**asdict(self), "prefix": dict(self.prefix), "kinds": list(self.kinds)}


def _settings_of(config: PrefixConfig) -> dict[str, Any]:
    """Return the settings of a config that are not the default, which may depend on the document."""
    kept = (item for item in fields(config) if getattr(config, item.name) != item.default)
    return {"num_virtual_tokens": config.num_virtual_tokens} | {item.name: getattr(config, item.name) for item in kept}
