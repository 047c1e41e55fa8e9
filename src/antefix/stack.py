"""`Stack`: one encoder or decoder of a model, whose forwards go down with the prefixes of their rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from antefix.attention.carrier import Carrier, checkpoints
from antefix.attention.state import NO_PREFIXES, ForwardPrefixes, KeysAndValues
from antefix.attention.together import Together
from antefix.errors import ConfigError, UnsupportedModelError, no_copies_of
from antefix.observation import KEYWORD, takes_keywords
from antefix.padding import OuterMask
from antefix.positions import StackPositions, cache_of
from antefix.selection import Selection, names_of, rows_of
from antefix.sites import Site


class Stack:
    """Watches the forwards of one stack.

    `selection` tells what is in use now; `materialize` returns the keys and values of a named prefix at given sites for
    a forward with this cache, or with none; `carrier` is there if no keyword reaches some of the sites; `outer` is the
    mask of the model around it; `encodes_rows` tells that a decoder attends to what this stack makes of the rows of
    the batch, whatever it reads.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        sites: Sequence[Site],
        selection: Callable[[], Selection],
        materialize: Callable[[str, Sequence[Site], Any], KeysAndValues],
        carrier: Carrier[ForwardPrefixes | None] | None,
        outer: OuterMask | None = None,
        encodes_rows: bool = False,
    ) -> None:
        self.module = module
        self.sites = sites
        self.selection = selection
        self.materialize = materialize
        self.carrier = carrier
        self.sends_keyword = takes_keywords(module)
        self.self_attention = frozenset(site.path for site in sites if site.kind != "cross")
        self.positions = StackPositions(module, outer)
        self.has_rows_of_batch = self.positions.reads_tokens or encodes_rows
        self.together = Together()
        self.parameters = list(inspect.signature(module.forward).parameters)
        self.hooks = [
            module.register_forward_pre_hook(self._before, with_kwargs=True),
            module.register_forward_hook(self._after, always_call=True),
        ]

    def __reduce__(self) -> str:
        """Refuse to be copied or pickled."""
        raise no_copies_of(self.module)

    @property
    def limit(self) -> int | None:
        """How many positions the stack has, or was made for; None if it names no number."""
        made_for = getattr(self.module.config, "max_position_embeddings", None)
        return min((limit for limit in (made_for, self.positions.limit) if limit is not None), default=None)

    def close(self) -> None:
        """Take every hook away."""
        for hook in self.hooks:
            hook.remove()
        self.positions.close()
        if self.carrier is not None:
            self.carrier.leave_checkpoints(self.module.modules())

    def _before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]]:
        self._after(module, args, None)  # a forward that was interrupted did not come to it
        inputs = dict(zip(self.parameters, args, strict=False)) | kwargs
        prefixes = self._prefixes(inputs)
        if self.sends_keyword:
            inputs[KEYWORD] = prefixes
        if self.carrier is not None:
            self.carrier.hold(prefixes)
            self.carrier.enter_checkpoints(module.modules())
        return (), inputs

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.carrier is not None:
            self.carrier.hold(None)
        self.positions.finish(succeeded=output is not None)

    def _prefixes(self, inputs: dict[str, Any]) -> ForwardPrefixes:
        """Materialise the prefixes of this forward, once, and move the tokens behind them."""
        selection = self.selection()
        selected = dict.fromkeys(name for name in names_of(selection) if name is not None)
        if not selected:
            return NO_PREFIXES
        batch = _batch_size(inputs)
        if batch is None:  # the base raises its own error
            return NO_PREFIXES
        cache = cache_of(inputs)
        made = {name: self.materialize(name, self.sites, cache) for name in selected}
        here = {name: prefix for name, prefix in made.items() if any(site.path in prefix.pairs for site in self.sites)}
        if not here:
            return NO_PREFIXES
        used, prefixes = list(here), tuple(here.values())
        if self.module.training and any(map(_trains, prefixes)):
            _refuse_reentrant_checkpointing(self.module.modules())
        lengths = [self._length(prefix) for prefix in prefixes]
        chosen = [used.index(name) if name in here else -1 for name in names_of(selection)]
        prefix_indices = tuple(self._of_rows(chosen, batch))
        relative = None
        if any(lengths):
            relative = self.positions.shift(inputs, [0 if index < 0 else lengths[index] for index in prefix_indices])
        return ForwardPrefixes(prefixes, prefix_indices, relative, self.together.for_cache(prefixes, cache))

    def _of_rows(self, chosen: Sequence[int], batch: int) -> Sequence[int]:
        """Return the index of a prefix for each row of this stack, -1 for none."""
        if self.has_rows_of_batch and len(chosen) > 1:
            return rows_of(chosen, batch)
        if len(set(chosen)) == 1:
            return [chosen[0]] * batch
        if len(chosen) != batch:  # also a multiple may be images, which need not be dealt out evenly
            raise ConfigError(
                f"prefixes are chosen for {len(chosen)} rows, but the {batch} rows of {type(self.module).__name__}, "
                "such as images, are not those of the batch; all rows need the same prefix there, or give one name."
            )
        return chosen

    def _length(self, prefix: KeysAndValues) -> int:
        """Return by how much a prefix moves the tokens of this stack: by nothing where it has no self-attention."""
        return next((key.shape[1] for path, (key, _) in prefix.pairs.items() if path in self.self_attention), 0)


def _batch_size(inputs: Mapping[str, Any]) -> int | None:
    """Return the rows of the stack's main input; None if it has no input."""
    for name in ("input_ids", "inputs_embeds"):
        if isinstance(inputs.get(name), Tensor):
            return int(inputs[name].shape[0])
    return next((int(value.shape[0]) for value in inputs.values() if isinstance(value, Tensor)), None)


def _trains(prefix: KeysAndValues) -> bool:
    return torch.is_grad_enabled() and any(part.requires_grad for pair in prefix.pairs.values() for part in pair)


def _refuse_reentrant_checkpointing(modules: Iterable[nn.Module]) -> None:
    """Reentrant checkpointing loses the gradients of everything but a layer's inputs, so of every prefix.

    PyTorch does so unless Transformers tells it otherwise.
    """
    for module, _, checkpoint in checkpoints(modules):
        is_on = vars(module).get("gradient_checkpointing")  # None of PyTorch's wrapper, which says what it does
        if is_on is not False and getattr(checkpoint, "keywords", {}).get("use_reentrant", is_on):
            raise UnsupportedModelError(
                "reentrant gradient checkpointing drops the gradients of a prefix; enable it with "
                "{'use_reentrant': False}."
            )
