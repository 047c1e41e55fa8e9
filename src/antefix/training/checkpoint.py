"""What a checkpoint of training keeps of a model: the tensors that are trained, and no others."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from antefix.errors import ConfigError, PrefixFormatError
from antefix.sharding import like, whole
from antefix.storage import write_atomically

TRAINED_NAME = "trained.safetensors"


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every trainable parameter by name, whole and on the CPU; all processes that hold shards must call it."""
    return {name: whole(p).detach().cpu() for name, p in model.named_parameters() if p.requires_grad}


def save_trained(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write trained tensors into a checkpoint's folder."""
    write_atomically(folder / TRAINED_NAME, save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def load_trained(model: nn.Module, folder: Path) -> None:
    """Set every trainable parameter to what a checkpoint kept of it.

    Raises `PrefixFormatError` where there is no intact one, `ConfigError` where it was made by another training.
    """
    path = folder / TRAINED_NAME
    try:
        kept = load_file(path)
    except (OSError, SafetensorError) as error:
        raise PrefixFormatError(f"'{folder}' is no checkpoint of PrefixTrainer: '{path}' cannot be read.") from error
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    expected = {name: tuple(p.shape) for name, p in parameters.items()}
    found = {name: tuple(tensor.shape) for name, tensor in kept.items()}
    if found != expected:
        odd = min(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise ConfigError(
            f"the checkpoint '{folder}' is of another training: it has {found.get(odd, 'nothing')} for '{odd}', and "
            f"what is trained here has {expected.get(odd, 'nothing')}; resume with the same prefix config and model."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(like(parameter, kept[name]))
