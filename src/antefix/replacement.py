"""`Replacement`: one module of the base model in whose place others compute, each for the rows that chose it."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache

from antefix.errors import ConfigError
from antefix.selection import rows_of


class Replacement:
    """Lets others compute in place of the module at a path, until `undo`.

    `choices` returns, at each forward, one module for all rows or one for each; None is the replaced module itself.
    Within `only_rows`, which is told some rows and how many the batch has, what lies inside of it computes for those.
    """

    def __init__(
        self,
        path: str,
        module: nn.Module,
        choices: Callable[[], Sequence[nn.Module | None]],
        only_rows: Callable[[Sequence[int], int], AbstractContextManager[None]],
        is_in_attention: bool = False,
    ) -> None:
        self.path = path
        self.module = module
        self._is_in_attention = is_in_attention
        self._choices = choices
        self._only_rows = only_rows
        self._own = vars(module).get("forward")
        self._is_undone = False

        # A function, not a method: a deep copy of the module, as PEFT trains, keeps it, with parameters of its own.
        def forward(computing: nn.Module, *args: Any, **kwargs: Any) -> Any:
            original = self._own or functools.partial(type(computing).forward, computing)
            if self._is_undone:  # such a copy outlives the bank
                return original(*args, **kwargs)
            return self._compute(original, args, kwargs)

        self._forward = forward
        module.forward = types.MethodType(forward, module)

    def is_of(self, module: nn.Module) -> bool:
        """Return whether others compute in place of this module, be it the replaced one or a deep copy of it."""
        return getattr(vars(module).get("forward"), "__func__", None) is self._forward

    def undo(self) -> None:
        """Let the module itself compute again."""
        self._is_undone = True
        del cast(Any, self.module).forward
        if self._own is not None:
            self.module.forward = self._own

    def _compute(self, original: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        choices = self._choices()
        dtype = next(self.module.parameters()).dtype

        def answer(module: nn.Module | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            return original(*args, **kwargs) if module is None else _call(module, args, kwargs, dtype)

        modules = dict.fromkeys(choices)
        if len(modules) == 1:
            return answer(choices[0], args, kwargs)
        inputs = (*args, *kwargs.values())
        if not self._has_rows(inputs) or any(isinstance(value, Cache) for value in inputs):  # which is that of all rows
            raise self._refusal()
        batch = next((len(value) for value in inputs if isinstance(value, Tensor) and value.ndim), 0)
        chosen = rows_of(choices, batch)
        answered: dict[int, Tensor] = {}
        for module in modules:
            rows = [row for row, other in enumerate(chosen) if other is module]
            own = [_rows_of(value, rows, batch) for value in args]
            with self._only_rows(rows, batch):
                output = answer(module, own, {name: _rows_of(value, rows, batch) for name, value in kwargs.items()})
            if not isinstance(output, Tensor) or len(output) != len(rows):
                raise self._refusal()
            answered.update(zip(rows, output, strict=True))
        return torch.stack([answered[row] for row in range(batch)])

    def _has_rows(self, inputs: Sequence[Any]) -> bool:
        """Return whether inputs are of the rows of a batch: distances, as T5's, and a list of positions are not."""
        numbers = any(map(is_float, inputs))
        return numbers or (not self._is_in_attention and any(isinstance(v, Tensor) and v.ndim > 1 for v in inputs))

    def _refusal(self) -> ConfigError:
        return ConfigError(f"rows cannot use trained modules '{self.path}' of several prefixes; run each on its own.")


def _rows_of(value: Any, rows: Sequence[int], batch: int) -> Any:
    """Return these rows of an input that has one for each of the batch."""
    has_rows = isinstance(value, Tensor) and value.ndim > 0 and len(value) == batch
    return torch.stack([value[row] for row in rows]) if has_rows else value


def _call(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Compute in the module's own dtype, and answer in that of the inputs, or in `dtype` for token ids alone."""
    inner = next(module.parameters()).dtype
    outer = next((value.dtype for value in (*args, *kwargs.values()) if is_float(value)), dtype)

    def cast_to(value: Any, dtype: torch.dtype) -> Any:
        return value.to(dtype) if is_float(value) else value

    output = module(*(cast_to(v, inner) for v in args), **{name: cast_to(v, inner) for name, v in kwargs.items()})
    return cast_to(output, outer)


def is_float(value: object) -> bool:
    """Return whether this is a tensor of floating-point numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()
