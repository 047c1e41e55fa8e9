"""Named prefixes for one base: what may be offered, and what is refused before an engine starts."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

import antefix
from antefix.embedded import model_path
from antefix.vllm import Prefixes
from antefix.vllm.admin import Admin
from antefix.vllm.prefixes import files_in
from antefix.vllm.roster import Roster, posted_roster
from antefix.vllm.settings import ROSTER
from antefix.vllm.ticket import Ticket, read_ticket


@pytest.fixture
def prefixes() -> Prefixes:
    return Prefixes("embedded")


def some_prefix(sites: Any, num_virtual_tokens: int = 3, **settings: Any) -> antefix.Prefix:
    keys, values = (
        {site.path: torch.randn(site.num_key_value_heads, num_virtual_tokens, dim(site)) for site in sites}
        for dim in (lambda site: site.key_dim, lambda site: site.value_dim)
    )
    return antefix.Prefix(sites, keys, values, **settings)


def saved(prefix: antefix.Prefix, path: Path) -> Path:
    antefix.save_prefix(prefix, path)
    return path


def test_a_prefix_is_offered_by_its_name(prefixes: Prefixes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = some_prefix(prefixes.sites)
    file = saved(prefix, tmp_path / "a.safetensors")
    monkeypatch.chdir(tmp_path)
    ticket = prefixes.add("legal", "a.safetensors")
    assert ticket == Ticket("legal", str(file), 3, prefix.content_hash())
    assert list(prefixes) == ["legal"]
    prefixes.remove("legal")
    with pytest.raises(antefix.UnknownPrefixError, match="There are 0"):
        prefixes["legal"]


def test_a_prefix_with_other_numbers_than_were_saved_is_refused(prefixes: Prefixes, tmp_path: Path) -> None:
    file = saved(some_prefix(prefixes.sites), tmp_path / "a.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(antefix.PrefixFormatError, match="other numbers than it was saved with"):
        prefixes.add("a", file)


def test_the_content_decides_the_hash(prefixes: Prefixes, tmp_path: Path) -> None:
    prefix = some_prefix(prefixes.sites)
    first = prefixes.add("a", saved(prefix, tmp_path / "a.safetensors"))
    again = prefixes.add("b", saved(replace(prefix, metadata={"more": 1}), tmp_path / "b.safetensors"))
    assert first.content == again.content
    path = prefixes.sites[-1].path
    other = {**prefix.values, path: prefix.values[path] + 1e-3}
    assert replace(prefix, values=other).content_hash() != first.content
    swapped = replace(prefix, keys=prefix.values, values=prefix.keys)
    assert swapped.content_hash() != first.content
    assert replace(prefix, sites=prefix.sites[::-1]).content_hash() == first.content


@pytest.mark.parametrize("name", ["", ".hidden", "-flag", "a/b", "../a", "a b", "a\n", "ä", "a" * 129])
def test_names_that_are_none(prefixes: Prefixes, name: str, tmp_path: Path) -> None:
    file = saved(some_prefix(prefixes.sites), tmp_path / "a.safetensors")
    with pytest.raises(antefix.ConfigError, match="cannot name a prefix"):
        prefixes.add(name, file)


def test_prefixes_that_vllm_cannot_hold(prefixes: Prefixes, tmp_path: Path) -> None:
    sites = prefixes.sites
    file = tmp_path / "a.safetensors"
    cases = {
        "5 of 6 layers": some_prefix(sites[:5]),
        "does not fit": some_prefix([replace(site, num_key_value_heads=1) for site in sites]),
        "modules": some_prefix(sites, modules={"lm_head:weight": torch.ones(2)}),
    }
    for about, prefix in cases.items():
        with pytest.raises(antefix.PrefixMismatchError, match=about):
            prefixes.add("a", saved(prefix, file))
    file.write_bytes(b"nothing")
    with pytest.raises(antefix.PrefixFormatError):
        prefixes.add("a", file)
    assert len(prefixes) == 0


BASES: dict[str, tuple[dict[str, Any], str]] = {
    "encoder attention": ({"model_type": "bert"}, "encoder attention"),
    "encoder-decoder": ({"model_type": "t5", "d_model": 8, "d_kv": 4, "num_heads": 2}, "cross and encoder"),
    "latent": (
        {
            "model_type": "deepseek_v3", "hidden_size": 16, "num_hidden_layers": 1, "kv_lora_rank": 4,
            "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4, "q_lora_rank": 4, "num_attention_heads": 2,
            "n_routed_experts": 4, "first_k_dense_replace": 1, "intermediate_size": 8, "n_group": 1, "topk_group": 1,
            "vocab_size": 32, "num_key_value_heads": 2,
        },
        "latent",
    ),
    "layers without attention": (
        {
            "model_type": "qwen3_next", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 32, "num_experts": 0, "intermediate_size": 8,
            "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        "layers without attention",
    ),
    "shared keys": (
        {
            "model_type": "gemma4_text", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 8, "global_head_dim": 8, "vocab_size": 32, "intermediate_size": 8,
            "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 32,
        },
        "take their keys and values from others",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BASES)
def test_bases_that_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    settings, about = BASES[kind]
    config = AutoConfig.for_model(**settings)
    config.save_pretrained(tmp_path)
    with pytest.raises(antefix.UnsupportedModelError, match=about):
        Prefixes(str(tmp_path))


def test_a_choice_for_one_request(prefixes: Prefixes, tmp_path: Path) -> None:
    ticket = prefixes.add("a", saved(some_prefix(prefixes.sites), tmp_path / "a.safetensors"))
    params = SimpleNamespace(prompt_logprobs=None, extra_args={"mine": 1}, max_tokens=3)
    chosen = prefixes.use("a", params)
    assert read_ticket(chosen.extra_args["kv_transfer_params"]) == ticket
    assert (chosen.extra_args["mine"], chosen.max_tokens) == (1, 3)
    assert params.extra_args == {"mine": 1}
    with pytest.raises(antefix.ConfigError, match="prompt_logprobs"):
        prefixes.use("a", SimpleNamespace(prompt_logprobs=0, extra_args=None))
    with pytest.raises(antefix.ConfigError, match="SimpleNamespace cannot be used with a prefix"):
        prefixes.use("a", SimpleNamespace(beam_width=2, max_tokens=3))  # as vLLM's BeamSearchParams


def test_an_engine_without_prefixes_is_told_apart(prefixes: Prefixes) -> None:
    for connector, is_ours in ((None, False), ("OtherConnector", False), ("AntefixConnector", True)):
        transfer = SimpleNamespace(kv_connector=connector) if connector else None
        llm = SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=SimpleNamespace(kv_transfer_config=transfer)))
        with nullcontext() if is_ours else pytest.raises(antefix.ConfigError, match="engine_args"):
            prefixes.check(llm)


def test_files_of_a_directory(tmp_path: Path) -> None:
    for name in ("b.safetensors", "a.v1.safetensors", ".c.safetensors", "d.txt"):
        (tmp_path / name).write_bytes(b"")
    assert list(files_in(tmp_path)) == ["a.v1", "b"]
    with pytest.raises(antefix.ConfigError, match="no directory"):
        files_in(tmp_path / "absent")


def test_a_roster_is_followed_by_others(prefixes: Prefixes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTEFIX_ROSTER", "set back by monkeypatch at the end")
    first = prefixes.add("a", saved(some_prefix(prefixes.sites), tmp_path / "a.safetensors"))
    with posted_roster(str(model_path()), prefixes, tmp_path) as roster:
        other = Roster.of_environment()
        assert other.tickets() == {"a": first}
        assert (other.base, other.directory) == (str(model_path()), tmp_path.resolve())
        new = replace(first, name="b", content="1")
        roster.put(new)
        assert other.tickets() == {"a": first, "b": new}
        other.put(replace(new, content="2"))
        other.remove("a")
        assert [ticket.content for ticket in roster.tickets().values()] == ["2"]
        with pytest.raises(antefix.ConfigError, match="no file of the directory"):
            Admin(roster)._inside("\ud800.safetensors")
        # Whoever tidies up temporary files may take it: what was offered goes on, and a change brings it back.
        shutil.rmtree(Path(os.environ[ROSTER]).parent)
        assert [ticket.content for ticket in other.tickets().values()] == ["2"]
        roster.put(first)
        assert set(other.tickets()) == {"a", "b"}
        # Or somebody else may put a roster of his own where it was.
        folder = Path(os.environ[ROSTER]).parent
        folder.chmod(0o777)
        content = json.loads(Path(os.environ[ROSTER]).read_text())
        Path(os.environ[ROSTER]).write_text(json.dumps({**content, "directory": "/elsewhere", "prefixes": {}}))
        assert set(other.tickets()) == {"a", "b"}
        assert other.directory == tmp_path.resolve()
        with pytest.raises(PermissionError, match="not this server's own any more"):
            other.remove("a")
    monkeypatch.delenv("ANTEFIX_ROSTER")
    with pytest.raises(antefix.ConfigError, match="antefix serve"):
        Roster.of_environment()
