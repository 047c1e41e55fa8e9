"""What a checkpoint of training keeps: the prefix's own modules, whatever else is trained, and whose they are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from antefix.errors import ConfigError, PrefixFormatError
from antefix.sharding import sharded_like, whole
from antefix.storage import read_tensors, write_atomically

TRAINED_NAME = "trained.safetensors"


class Trained:
    """The tensors of a model that training changes or starts from, by names that do not depend on the bank.

    These are all tensors of the modules in `prefix`, which make the prefix, and all other trainable parameters of
    `model`. `subject` tells in plain data which prefix of which model they belong to.
    """

    def __init__(self, model: nn.Module, prefix: Sequence[nn.Module], subject: Mapping[str, Any]) -> None:
        self.model = model
        self.prefix = prefix
        self.subject = json.dumps(dict(subject), sort_keys=True)

    def gathered(self) -> dict[str, Tensor]:
        """Return the tensors, whole and on the CPU; all processes that hold shards must call it."""
        return {name: whole(tensor).detach().cpu().contiguous() for name, tensor in self._tensors().items()}

    def save(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """Write gathered tensors into a checkpoint's folder."""
        # Copies, because tied parameters share memory, which a file of safetensors cannot say.
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        write_atomically(folder / TRAINED_NAME, save(copies, {"subject": self.subject}))

    def load(self, folder: Path) -> None:
        """Set the tensors to what a checkpoint kept of them.

        Raises `PrefixFormatError` if there is no intact one, `ConfigError` if another training made it.
        """
        try:
            metadata, kept = read_tensors(folder / TRAINED_NAME)
        except PrefixFormatError as error:
            raise PrefixFormatError(f"'{folder}' is no checkpoint of PrefixTrainer: {error}") from error
        tensors = self._tensors()
        difference = _difference(kept, tensors)
        if difference is None and metadata.get("subject") != self.subject:
            difference = "its prefix stands at other attention, or at that of another model, or tells other labels"
        if difference is not None:
            raise ConfigError(
                f"the checkpoint '{folder}' is of another training: {difference}; resume with the same prefix config "
                "and model."
            )
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(sharded_like(tensor, kept[name]))

    def _tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for number, module in enumerate(self.prefix):
            # With its buffers: the start computed from a text, which need not come out the same on another machine.
            found |= {f"prefix.{number}.{name}": tensor for name, tensor in module.state_dict(keep_vars=True).items()}
        own = {id(tensor) for tensor in found.values()}
        others = {name: p for name, p in self.model.named_parameters() if p.requires_grad and id(p) not in own}
        return found | others


def _difference(kept: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> str | None:
    """Return how the tensors of a checkpoint differ from those that are trained; None if they do not."""
    found, expected = ({name: tuple(tensor.shape) for name, tensor in part.items()} for part in (kept, trained))
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            theirs, ours = found.get(name, "nothing"), expected.get(name, "nothing")
            return f"it has {theirs} for '{name}', and what is trained here has {ours}"
    return None
