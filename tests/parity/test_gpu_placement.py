"""On a GPU nothing is left on the CPU: PyTorch's fake tensors know devices and shapes, and need no GPU to hold numbers.

They refuse to compute with tensors of two devices, as a GPU does.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import PreTrainedModel

import antefix
from antefix.attention import choice, shared
from tests.parity.compare import attach
from tests.parity.families import FAMILIES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="PyTorch's library has another name there")
_CUDA, _META = 1, 14  # as PyTorch numbers its types of devices
_NAMES = ["GPT-2", "OPT", "Llama", "Gemma 3", "Qwen3.5", "RoBERTa", "ModernBERT", "T5", "BART", "Whisper", "LLaVA"]


@pytest.fixture(autouse=True)
def device_guard() -> Iterator[None]:
    """Let PyTorch for CPUs go to a GPU as it goes to its device "meta", where there is nothing to be done for it.

    PyTorch for GPUs does so by itself where it finds none.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * (_META + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before = guards[_CUDA]
    guards[_CUDA] = before or guards[_META]
    yield
    guards[_CUDA] = before


class _Fake(FakeTensorMode):
    """Answers yes, or one, where a model asks what a tensor holds."""

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return True if args[0].dtype == torch.bool else 1
        return super().dispatch(func, types, args, kwargs or {})


@pytest.fixture
def differentiated(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Trust a GPU's kernels, and differentiate the operator whenever it runs: autograd itself asks for a real GPU."""
    dtypes: list[torch.dtype] = []
    setup_context = shared._setup_context

    def differentiate(ctx: Any, inputs: Any, outputs: Any) -> None:
        setup_context(ctx, inputs, outputs)
        grads = shared._differentiate(torch.ones_like(outputs[0]), *inputs, *outputs, True)
        for gradient, tensor in zip(
            [*grads[:3], *grads[3], *grads[4]], [*inputs[:3], *inputs[3], *inputs[4]], strict=True
        ):
            assert (gradient.shape, gradient.dtype, gradient.device) == (tensor.shape, tensor.dtype, tensor.device)
        dtypes.append(outputs[0].dtype)

    monkeypatch.setattr(shared, "_setup_context", differentiate)
    monkeypatch.setattr(choice, "is_trusted", lambda *_: True)
    monkeypatch.setattr(choice, "can_decode", lambda *_: False)  # a compiled kernel takes no fake tensors
    return dtypes


def on_gpu(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    dtype = dtype if tensor.is_floating_point() else tensor.dtype
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device="cuda")


def move_to_gpu(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Move a model's weights to the GPU in a dtype, and its prefixes as they are."""
    for path, module in model.named_modules():
        own = None if "antefix" in path else dtype
        for name, parameter in module.named_parameters(recurse=False):
            moved = on_gpu(parameter, own or parameter.dtype)
            module._parameters[name] = nn.Parameter(moved, requires_grad=parameter.requires_grad)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = on_gpu(buffer, own or buffer.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", _NAMES)
def test_one_device(name: str, dtype: torch.dtype, differentiated: list[torch.dtype]) -> None:
    """A trained prefix and one on the CPU, for all rows and for some, with gradients and without."""
    family = FAMILIES[name]
    model = family.build()
    bank = attach(family, model)
    bank.add("trained", antefix.PrefixConfig(5, init="random"))
    bank.add("frozen", bank.prefix("trained"))
    drawn = family.draw_inputs()
    selections: list[Any] = ["trained", "frozen", None]
    if family.group != "vision-language":
        selections += [["trained", "frozen"], [None, "frozen"]]
    with _Fake(allow_non_fake_inputs=True):
        move_to_gpu(model, dtype)
        inputs = {key: on_gpu(tensor, dtype) for key, tensor in drawn.items()}
        for selection in selections:
            for gradients in (True, False):
                with bank.use(selection), torch.set_grad_enabled(gradients):
                    assert model(**inputs)[0].device.type == "cuda"
    assert set(differentiated) == (set() if name == "T5" else {dtype})  # whose bias by distance is no operator's
