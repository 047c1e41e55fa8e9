"""Files that earlier versions wrote are read as what they were; one is added with each version of the format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import antefix
from antefix.sites import Site
from antefix.storage import VERSION

GOLDEN = Path(__file__).parent / "golden"
SITES = (Site("model.encoder.0", "encoder", 0, 2, 3, 4), Site("model.decoder.0", "decoder", 0, 1, 2, 2))


def counted(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return 0, 1/8, 2/8 and so on, which every dtype of the format holds exactly."""
    return (torch.arange(torch.Size(shape).numel()) / 8).view(shape).to(dtype)


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_version_1(name: str, dtype: torch.dtype) -> None:
    prefix = antefix.load_prefix(GOLDEN / f"version-1-{name}.safetensors")
    assert prefix.sites == SITES
    assert prefix.num_virtual_tokens == 5
    assert prefix.metadata == {"base_model": "tiny", "training": {"seed": 7}}
    for site in SITES:
        heads, tokens = site.num_key_value_heads, prefix.num_virtual_tokens
        assert torch.equal(prefix.keys[site.path], counted(heads, tokens, site.key_dim, dtype=dtype))
        assert torch.equal(prefix.values[site.path], -counted(heads, tokens, site.value_dim, dtype=dtype))
    assert list(prefix.modules) == ["classifier:weight"]
    assert torch.equal(prefix.modules["classifier:weight"], counted(3, 2))


def test_every_version_has_a_golden_file() -> None:
    versions = {path.name.split("-")[1] for path in GOLDEN.iterdir()}
    assert versions == {str(number) for number in range(1, int(VERSION) + 1)}
