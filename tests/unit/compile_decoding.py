"""Compile the kernel that decodes for a GPU that need not be here, and print how much shared memory it takes."""

from __future__ import annotations

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from antefix.attention.decoding import _BLOCK_SIZE, _NUM_STAGES, _NUM_WARPS, _decode

COMPUTE_CAPABILITY, WARP_SIZE, DIM = 90, 32, 128
CONSTANTS = {
    "key_dim": DIM, "value_dim": DIM, "block_dim": DIM, "group_size": 4, "block_heads": 16,
    "block_tokens": _BLOCK_SIZE // DIM, "is_aligned": True, "is_masked": True,
}  # fmt: skip
TYPES = dict.fromkeys(("query", "key", "value", "mask", "output"), "*bf16") | {"prefix_table": "*i64", "scale": "fp32"}

names = _decode.arg_names
signature = {name: "constexpr" if name in CONSTANTS else TYPES.get(name, "i32") for name in names}
source = ASTSource(_decode, signature, {(names.index(name),): number for name, number in CONSTANTS.items()})
options = {"num_warps": _NUM_WARPS, "num_stages": _NUM_STAGES}
compiled = triton.compile(source, target=GPUTarget("cuda", COMPUTE_CAPABILITY, WARP_SIZE), options=options)
assert compiled.asm["cubin"]
print(compiled.metadata.shared)
