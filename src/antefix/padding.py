"""What a model was told of its padding, before it called the stack inside of it.

Models of images and text may count positions without a look at the padding and pass those down, beside a mask that is
none any more. That does no harm to a bare row, whose tokens stand equally far apart; behind a prefix it would leave a
gap.
"""

from __future__ import annotations

import inspect
import threading
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from antefix.errors import no_copies_of


class OuterMask:
    """Keeps the 2-D mask that the model around a stack is given without `position_ids`, until the stack takes it."""

    def __init__(self, outer: PreTrainedModel) -> None:
        self.model = outer
        self._parameters = list(inspect.signature(outer.forward).parameters)
        self._given = threading.local()
        self._hooks = [
            outer.register_forward_pre_hook(self._keep, with_kwargs=True),
            outer.register_forward_hook(self._drop, always_call=True),
        ]

    def __reduce__(self) -> str:
        """Refuse to be copied or pickled."""
        raise no_copies_of(self.model)

    def close(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def take(self, batch: int, length: int) -> Tensor | None:
        """Return the mask `(batch, past and present token)` for a stack of so many rows and tokens, once."""
        mask = getattr(self._given, "mask", None)
        self._given.mask = None
        return mask if mask is not None and mask.shape[0] == batch and mask.shape[1] >= length else None

    def _keep(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = dict(zip(self._parameters, args, strict=False)) | kwargs
        mask = inputs.get("attention_mask")
        is_told = inputs.get("position_ids") is None and isinstance(mask, Tensor) and mask.ndim == 2
        self._given.mask = mask if is_told else None

    def _drop(self, module: nn.Module, args: Any, output: Any) -> None:
        self._given.mask = None


def outer_mask(model: PreTrainedModel, stack: PreTrainedModel) -> OuterMask | None:
    """Watch the model right around a stack; a head, which hands down what it is given, needs none.

    Nor does an encoder-decoder, whose mask is its encoder's.
    """
    models = [module for module in model.modules() if isinstance(module, PreTrainedModel) and module is not stack]
    around = [module for module in models if any(stack is part for part in module.modules())]
    if not around or around[-1].base_model is stack or around[-1].config.is_encoder_decoder:
        return None
    return OuterMask(around[-1])


def counted(mask: Tensor, past: int | Tensor, length: int, skips_holes: bool = False) -> Tensor:
    """Return the positions `(batch, token)` of the last `length` tokens, from the first one that the mask shows.

    What it hides between two of them has a position, as the bare base gives it one, unless the stack skips it; what it
    hides behind the last one has that one's, so that padding needs no room.
    """
    running = mask.bool().cumsum(-1)
    if not skips_holes:
        padding = (running == 0).sum(-1, keepdim=True)
        last = (running < running[:, -1:]).sum(-1, keepdim=True)
        return ((torch.arange(length, device=mask.device) + past).minimum(last) - padding).clamp(min=0)
    if isinstance(past, int):  # a mask may be as long as a static cache
        running = running[:, : past + length]
    return (running[:, -length:] - 1).clamp(min=0)


def without_padding(positions: Tensor, mask: Tensor, past: int | Tensor) -> Tensor:
    """Return `position_ids` `(1 or batch, token)` less the padding before each token, where they count it.

    They do where they go on one by one from the first column, hidden or not, to as far as past and length reach.
    """
    length = positions.shape[1]
    steps = torch.arange(length, device=positions.device)
    count_all = (positions == positions[:, :1] + steps).all(-1, keepdim=True) & (positions[:, -1:] >= past + length - 1)
    hidden = steps + past - counted(mask, past, length)
    return torch.where(count_all, positions - hidden.clamp(min=0), positions).clamp(min=0)
