"""Prefixes added, replaced and removed while the server runs, by the administrator alone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import antefix
from tests.vllm.bases import draw_prefix
from tests.vllm.server.served import NUM_PREFIXES, PROMPTS, Served, refused
from tests.vllm.serving import KEY


def test_prefixes_come_and_go(served: Served) -> None:
    shutil.copy(served.directory / "p10.safetensors", served.directory / "new.v1.safetensors")
    shutil.copy(served.directory / "p11.safetensors", served.directory / "new.v2.safetensors")
    for version, like in (("new.v1", "p10"), ("new.v2", "p11"), ("new.v1", "p10")):
        added = served.administer("POST", json={"name": "new", "file": f"{version}.safetensors"})
        assert added.json()["num_virtual_tokens"] == served.bank.prefix(like).num_virtual_tokens
        # Twice, so that the second answer comes from vLLM's prefix cache: it must be that of the new content.
        for _ in range(2):
            assert served.complete("new").choices[0].text == served.solo(like, PROMPTS[0], 12)
    assert served.administer("DELETE", "/new").json()["deleted"] is True
    assert refused(lambda: served.complete("new"))[0] == 404
    assert served.administer("DELETE", "/new").status_code == 404
    assert len(served.administer("GET").json()["data"]) == NUM_PREFIXES


@pytest.mark.parametrize(
    ("fields", "about"),
    [
        ({"name": "new", "file": "../p0.safetensors"}, "directory"),
        ({"name": "new", "file": "/etc/passwd"}, "directory"),
        ({"name": "new", "file": "absent.safetensors"}, "no prefix file"),
        ({"name": "new", "file": "damaged.safetensors"}, "not an intact"),
        ({"name": "new", "file": "of-another-base.safetensors"}, "does not fit"),
        ({"name": "new", "file": "of-some-layers.safetensors"}, "3 of 6 layers"),
        ({"name": "new", "file": "linked.safetensors"}, "directory"),
        ({"name": "embedded", "file": "p0.safetensors"}, "base model"),
        ({"name": "../new", "file": "p0.safetensors"}, "name"),
        ({"name": 3}, "strings"),
        ([], "JSON"),
    ],
)
def test_what_cannot_be_added(served: Served, tmp_path: Path, fields: Any, about: str) -> None:
    (served.directory / "damaged.safetensors").write_bytes((served.directory / "p9.safetensors").read_bytes()[:-100])
    good = antefix.load_prefix(served.directory / "p9.safetensors")
    fewer = [site for site in good.sites if site.layer < 3]
    some = antefix.Prefix(fewer, *({s.path: part[s.path] for s in fewer} for part in (good.keys, good.values)))
    antefix.save_prefix(some, served.directory / "of-some-layers.safetensors")
    lone = [replace(site, num_key_value_heads=1) for site in good.sites]
    heads = ({s.path: part[s.path][:1] for s in lone} for part in (good.keys, good.values))
    antefix.save_prefix(antefix.Prefix(lone, *heads), served.directory / "of-another-base.safetensors")
    link = served.directory / "linked.safetensors"
    link.unlink(missing_ok=True)
    shutil.copy(served.directory / "p0.safetensors", tmp_path / "outside.safetensors")
    link.symlink_to(tmp_path / "outside.safetensors")
    answer = served.administer("POST", json=fields)
    assert answer.status_code == 400
    assert about in answer.json()["error"]["message"]


def test_only_the_administrator_changes_prefixes(served: Served) -> None:
    for method, path in (("GET", ""), ("POST", ""), ("DELETE", "/p1")):
        assert served.administer(method, path, key=KEY).status_code == 401
    assert served.complete("p1").choices[0].text == served.solo("p1", PROMPTS[0], 12)


def test_a_file_that_changed_behind_the_server_fails_alone(served: Served) -> None:
    # Content of its own: what another test has left in the server's memory would be answered without reading the file.
    served.bank.add("changing", draw_prefix(served.bank, 20, seed=NUM_PREFIXES))
    file = served.directory / "changing.safetensors"
    antefix.save_prefix(served.bank.prefix("changing"), file)
    served.administer("POST", json={"name": "changing"})
    try:
        shutil.copy(served.directory / "p13.safetensors", file)
        status, _ = refused(lambda: served.complete("changing"))
        assert status == 500
        assert served.complete("p12").choices[0].text == served.solo("p12", PROMPTS[0], 12)
        antefix.save_prefix(served.bank.prefix("changing"), file)
        assert served.complete("changing").choices[0].text == served.solo("changing", PROMPTS[0], 12)
    finally:
        served.administer("DELETE", "/changing")
        served.bank.remove("changing")
