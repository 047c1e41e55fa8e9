"""FlexAttention's masks over prefix and sequence, made once for the layers that hide the same."""

from __future__ import annotations

import torch
from torch.nn.attention.flex_attention import create_block_mask

from antefix.attention import flex


def test_layers_share_a_block_mask() -> None:
    """A window's is another, and so is that of rows with other prefixes."""
    query = key = torch.zeros(2, 2, 6, 4)
    causal, window = (
        create_block_mask(lambda b, h, q, k, width=width: (k <= q) & (k > q - width), 2, None, 6, 6, device="cpu")
        for width in (6, 2)
    )
    block_masks: flex.BlockMasks = {}
    padded = torch.tensor([[False, True], [True, True]])
    calls = [(causal, None, (0, 0)), (window, None, (0, 0)), (causal, padded, (0, 1))]
    first, again = (
        [
            flex.prepend_to_block_mask(mask, query, key, 2, prefix_mask, prefix_indices, block_masks)
            for mask, prefix_mask, prefix_indices in calls
        ]
        for _ in range(2)
    )
    assert all(one is other for one, other in zip(first, again, strict=True))
    for number, (mask, prefix_mask, _) in enumerate(calls):
        for row in range(2):
            expected = [[k < 2 or bool(mask.mask_mod(row, 0, q, k - 2)) for k in range(8)] for q in range(6)]
            if prefix_mask is not None and not prefix_mask[row, 0]:
                expected = [[False, *columns[1:]] for columns in expected]
            rule = first[number].mask_mod
            at = [torch.tensor(value) for value in range(8)]
            assert [[bool(rule(at[row], at[0], at[q], at[k])) for k in range(8)] for q in range(6)] == expected


def test_fewer_queries_over_as_many_keys_have_a_mask_of_their_own() -> None:
    """As the one that pools an image's patches has, behind layers of patches that attend to each other."""
    patches, pooling = torch.zeros(2, 2, 6, 4), torch.zeros(2, 2, 1, 4)
    block_masks: flex.BlockMasks = {}
    padded = torch.tensor([[False, True], [True, True]])
    for query in (patches, pooling):
        mask = flex.prepend_to_block_mask(None, query, patches, 2, padded, (0, 1), block_masks)
        assert mask is not None
        assert mask.seq_lengths == (query.shape[2], 8)
