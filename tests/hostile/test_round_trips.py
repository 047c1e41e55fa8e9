"""Any prefix that can be made is written and read back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import antefix
from antefix.prefix import Prefix
from antefix.sites import KINDS, Site

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def _prefixes(draw: st.DrawFn) -> Prefix:
    small = st.integers(1, 4)
    paths = draw(st.lists(TEXT.filter(lambda text: text and ":" not in text), min_size=1, max_size=4, unique=True))
    sites = [
        Site(path, draw(st.sampled_from(KINDS)), draw(st.integers(0, 99)), draw(small), draw(small), draw(small))
        for path in paths
    ]
    num_virtual_tokens, dtype = draw(st.integers(1, 5)), draw(st.sampled_from(DTYPES))
    torch.manual_seed(draw(st.integers(0, 2**31)))

    def drawn(dims: str) -> dict[str, torch.Tensor]:
        return {
            site.path: torch.randn(site.num_key_value_heads, num_virtual_tokens, getattr(site, dims)).to(dtype)
            for site in sites
        }

    modules = {
        f"{name}:weight": torch.randn(2, 3) for name in draw(st.lists(TEXT.filter(bool), max_size=2, unique=True))
    }
    metadata: dict[str, Any] = draw(st.dictionaries(TEXT, JSON, max_size=4))
    return Prefix(tuple(sites), drawn("key_dim"), drawn("value_dim"), metadata, modules)


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(prefix=_prefixes())
def test_what_is_saved_is_loaded(prefix: Prefix, tmp_path: Path) -> None:
    antefix.save_prefix(prefix, tmp_path / "p.safetensors")
    loaded = antefix.load_prefix(tmp_path / "p.safetensors")
    assert loaded.content_hash() == prefix.content_hash()
    assert loaded.sites == prefix.sites
    assert loaded.metadata == prefix.metadata
    assert loaded.modules.keys() == prefix.modules.keys()
    assert all(torch.equal(loaded.modules[name], prefix.modules[name]) for name in prefix.modules)
