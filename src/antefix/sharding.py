"""Parameters of which several processes hold a shard each, as FSDP2 leaves them between forwards."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.func import functional_call


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that is no shard; every process that holds a part of it must call this."""
    return cast(Any, tensor).full_tensor() if hasattr(tensor, "full_tensor") else tensor


def sharded_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Return a whole tensor laid out as a parameter is: this process's shard of it, where that is sharded."""
    if not hasattr(parameter, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = cast(Any, parameter).device_mesh, cast(Any, parameter).placements
    return cast(Tensor, distribute_tensor(tensor.to(mesh.device_type), mesh, placements))


def call_whole(module: nn.Module, method: str, **arguments: Any) -> Any:
    """Call a module's method outside a forward, where its parameters may lie in shards."""
    call = _Call(module, method)
    return functional_call(call, {name: whole(p) for name, p in call.named_parameters()}, (), arguments)


class _Call(nn.Module):
    """Makes a method the forward, which alone `functional_call` calls."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module = module
        self.method = method

    def forward(self, **arguments: Any) -> Any:
        return getattr(self.module, self.method)(**arguments)
