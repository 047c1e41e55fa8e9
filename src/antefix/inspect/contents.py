"""What a prefix holds, without its base model: sites, bytes, and norms by layer and head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from antefix.prefix import Prefix
from antefix.sites import Site


@dataclass(frozen=True)
class Contents:
    """What one prefix holds; `content` is `Prefix.content_hash()`.

    `key_norms` and `value_norms` are Euclidean, averaged over the virtual tokens: one number per key/value head, by
    site path.
    """

    num_virtual_tokens: int
    sites: tuple[Site, ...]
    num_bytes: int
    dtypes: tuple[str, ...]
    content: str
    modules: Mapping[str, tuple[int, ...]]
    key_norms: Mapping[str, list[float]]
    value_norms: Mapping[str, list[float]]
    metadata: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        modules = {name: list(shape) for name, shape in self.modules.items()}
        return {**asdict(self), "sites": [asdict(site) for site in self.sites], "modules": modules}


def contents(prefix: Prefix) -> Contents:
    """Return what a prefix holds."""
    tensors = [*prefix.keys.values(), *prefix.values.values()]
    return Contents(
        num_virtual_tokens=prefix.num_virtual_tokens,
        sites=prefix.sites,
        num_bytes=sum(tensor.nbytes for tensor in tensors),
        dtypes=tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})),
        content=prefix.content_hash(),
        modules={name: tuple(tensor.shape) for name, tensor in prefix.modules.items()},
        key_norms={path: _norms(key) for path, key in prefix.keys.items()},
        value_norms={path: _norms(value) for path, value in prefix.values.items()},
        metadata=dict(prefix.metadata),
    )


def _norms(tensor: Tensor) -> list[float]:
    norms: list[float] = tensor.float().norm(dim=2).mean(dim=1).tolist()
    return norms
