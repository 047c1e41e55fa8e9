"""Trained modules in PEFT's checkpoints: which of a model's modules PEFT trains, and so asks a checkpoint for.

It takes every module whose path ends as one of the names it is given, and adds names of heads by the task. Of each it
loads all tensors, and it cannot load a module inside of another.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

from antefix.errors import ConfigError
from antefix.heads import base_modules
from antefix.prefix import Prefix

_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


def modules_to_save(prefix: Prefix, model: PreTrainedModel, task_type: str) -> list[str]:
    """Return the modules that PEFT must be told of; raises `ConfigError` if it could not load the checkpoint."""
    trained = {name.partition(":")[0] for name in prefix.modules}
    if task_type in _HEADS and not trained:
        raise ConfigError(
            f"PEFT loads a checkpoint of task_type='{task_type}' only with a trained head, and this prefix "
            "has none; name another task_type."
        )
    base = base_modules(model)
    added = _HEADS.get(task_type, ())
    for path in sorted(_ending_as(base, {*trained, *added})):
        _check_whole(path, base[path], prefix, task_type)
    told = _outermost(trained | _ending_as(base, added))
    wrapped = _ending_as(base, {*told, *added})
    if inner := sorted(wrapped - _outermost(wrapped)):
        raise ConfigError(
            f"PEFT trains '{inner[0]}' by itself with task_type='{task_type}', and cannot load it inside of another "
            f"trained module; train it by trainable_modules=['{inner[0]}'] instead."
        )
    return sorted(told)


def _check_whole(path: str, module: nn.Module, prefix: Prefix, task_type: str) -> None:
    bare = getattr(module, "original_module", getattr(module, "base_layer", module))  # what PEFT itself has put around
    held = {name.replace(":", ".") for name in prefix.modules}
    missing = [name for name in bare.state_dict() if f"{path}.{name}" not in held]
    if missing:
        raise ConfigError(
            f"PEFT loads '{path}' whole for task_type='{task_type}', and this prefix has no '{path}.{missing[0]}'; "
            f"train all of it, by '{path}' in trainable_modules, or name another task_type."
        )


def _ending_as(paths: Iterable[str], names: Iterable[str]) -> set[str]:
    ends = tuple(names)
    return {path for path in paths if path.endswith(ends)}


def _outermost(paths: set[str]) -> set[str]:
    return {path for path in paths if not any(path.startswith(f"{other}.") for other in paths)}
