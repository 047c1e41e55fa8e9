"""Prefix files: round trips, an independent reader, and files that are not what they claim."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import antefix
from antefix.initialize import random_prefix
from antefix.prefix import Prefix
from antefix.sites import Site
from antefix.storage import verify_prefix

SITES = (
    Site("enc.0", "encoder", 0, 2, 6, 4),
    Site("dec.0", "decoder", 0, 1, 3, 3),
    Site("dec.0.x", "cross", 0, 1, 3, 3),
)


@pytest.fixture
def prefix() -> Prefix:
    made = random_prefix(SITES, 5)
    return Prefix(SITES, made.keys, made.values, {"base_model": "tiny", "training": {"epochs": 3, "é": [1, None]}})


def read_by_hand(path: Path) -> tuple[dict[str, Any], bytes]:
    """Read a safetensors file as docs/format.md describes it, without any library."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_by_hand(path: Path, header: dict[str, Any], data: bytes) -> None:
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


def test_trained_modules_lie_beside_keys_and_values(prefix: Prefix, tmp_path: Path) -> None:
    modules = {"head.out:weight": torch.randn(3, 4), "head.out:bias": torch.randn(3)}
    whole = Prefix(SITES, prefix.keys, prefix.values, prefix.metadata, modules)
    antefix.save_prefix(whole, tmp_path / "p.safetensors")
    header, data = read_by_hand(tmp_path / "p.safetensors")
    start, end = header["head.out:bias"]["data_offsets"]
    assert list(struct.unpack("<3f", data[start:end])) == modules["head.out:bias"].tolist()
    loaded = antefix.load_prefix(tmp_path / "p.safetensors")
    for other in (loaded, copy.deepcopy(whole), antefix.concat([whole, prefix])):
        assert set(other.modules) == set(modules)
        assert all(torch.equal(other.modules[name], tensor) for name, tensor in modules.items())
    assert not prefix.modules


def test_the_hash_of_modules_is_that_of_the_specification(prefix: Prefix, tmp_path: Path) -> None:
    modules = {"out:weight": torch.randn(3, 4).bfloat16(), "out:scale": torch.tensor(2.0), "in:bias": torch.randn(3)}
    whole = Prefix(SITES, prefix.keys, prefix.values, prefix.metadata, modules)
    antefix.save_prefix(whole, tmp_path / "p.safetensors")
    header, data = read_by_hand(tmp_path / "p.safetensors")
    digest = hashlib.sha256()
    for name, described in (
        ("in:bias", b'["in:bias", "torch.float32", [3]]'),
        ("out:scale", b'["out:scale", "torch.float32", []]'),
        ("out:weight", b'["out:weight", "torch.bfloat16", [3, 4]]'),
    ):
        start, end = header[name]["data_offsets"]
        digest.update(described + data[start:end])
    assert header["__metadata__"]["modules"] == digest.hexdigest()
    antefix.save_prefix(prefix, tmp_path / "p.safetensors")
    header, _ = read_by_hand(tmp_path / "p.safetensors")
    assert header["__metadata__"]["modules"] == hashlib.sha256().hexdigest()


def test_changed_modules_are_found_where_the_file_told_of_them(prefix: Prefix, tmp_path: Path) -> None:
    path, modules = tmp_path / "p.safetensors", {"out:weight": torch.randn(3, 4), "out:bias": torch.randn(3)}
    antefix.save_prefix(Prefix(SITES, prefix.keys, prefix.values, prefix.metadata, modules), path)
    assert set(verify_prefix(path).modules) == set(modules)
    with safe_open(path, "pt") as file:
        told = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    without = {name: tensor for name, tensor in tensors.items() if name != "out:bias"}
    for changed in (
        tensors | {"out:weight": tensors["out:weight"] + 1},
        without,
        without | {"out:shift": tensors["out:bias"]},
        tensors | {"more:bias": torch.zeros(2)},
    ):
        save_file(changed, path, told)
        antefix.load_prefix(path)
        with pytest.raises(antefix.PrefixFormatError, match="other numbers than it was saved with"):
            verify_prefix(path)
        for missing in ({"modules"}, {"modules", "content"}):  # as the first files have it
            save_file(changed, path, {name: value for name, value in told.items() if name not in missing})
            verify_prefix(path)


def test_what_is_read_in_inference_mode_is_of_use_outside_of_it(prefix: Prefix, tmp_path: Path) -> None:
    antefix.save_prefix(prefix, tmp_path / "p.safetensors")
    with torch.inference_mode():
        loaded = antefix.load_prefix(tmp_path / "p.safetensors")
    assert not any(tensor.is_inference() for part in (loaded.keys, loaded.values) for tensor in part.values())


def test_a_prefix_does_not_change_with_its_file(prefix: Prefix, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    antefix.save_prefix(prefix, path)
    loaded, size = antefix.load_prefix(path), path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size - 400)
        file.write(bytes(400))
    assert loaded.content_hash() == prefix.content_hash()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip_is_exact(prefix: Prefix, tmp_path: Path, dtype: torch.dtype) -> None:
    cast = Prefix(
        SITES,
        {path: key.to(dtype) for path, key in prefix.keys.items()},
        {path: value.to(dtype) for path, value in prefix.values.items()},
        prefix.metadata,
    )
    antefix.save_prefix(cast, tmp_path / "new" / "p.safetensors")
    loaded = antefix.load_prefix(tmp_path / "new" / "p.safetensors")
    assert loaded.sites == SITES
    assert loaded.metadata == prefix.metadata
    for path in cast.keys:
        assert loaded.keys[path].dtype == dtype
        assert torch.equal(loaded.keys[path], cast.keys[path])
        assert torch.equal(loaded.values[path], cast.values[path])


def test_the_bytes_are_those_of_the_specification(prefix: Prefix, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    antefix.save_prefix(prefix, path)
    header, data = read_by_hand(path)
    metadata = header.pop("__metadata__")
    assert {name: metadata[name] for name in ("format", "version", "num_virtual_tokens")} == {
        "format": "antefix.prefix",
        "version": "1",
        "num_virtual_tokens": "5",
    }
    assert json.loads(metadata["sites"])[0] == {
        "path": "enc.0", "kind": "encoder", "layer": 0, "num_key_value_heads": 2, "key_dim": 6, "value_dim": 4,
    }  # fmt: skip
    assert set(header) == {f"{site.path}.{part}" for site in SITES for part in ("key", "value")}
    entry = header["enc.0.value"]
    assert (entry["dtype"], entry["shape"]) == ("F32", [2, 5, 4])
    start, end = entry["data_offsets"]
    numbers = struct.unpack(f"<{2 * 5 * 4}f", data[start:end])
    assert list(numbers) == prefix.values["enc.0"].flatten().tolist()


def test_truncation_anywhere_is_noticed(prefix: Prefix, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    antefix.save_prefix(prefix, path)
    content = path.read_bytes()
    for length in [*range(0, 200, 7), *range(200, len(content), 53), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(antefix.PrefixFormatError, match=r"p\.safetensors"):
            antefix.load_prefix(path)


def _set(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header["__metadata__"].__setitem__(name, value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_set("format", "other"), "not a prefix file"),
        (_set("version", "2"), "format version 2"),
        (_set("num_virtual_tokens", "6"), "names 6 virtual tokens and holds 5"),
        (_set("sites", "[{}]"), "header of .* is damaged"),
        (_set("sites", "nonsense"), "header of .* is damaged"),
        (_set("sites", "5"), "header of .* is damaged"),
        (_set("metadata", "[]"), "header of .* is damaged"),
        (lambda header: header["__metadata__"].pop("sites"), "header of .* is damaged"),
        (lambda header: header.__setitem__("stray.key", header["enc.0.key"]), "intact|does not hold"),
        (lambda header: header.pop("dec.0.x.value"), "intact|does not hold"),
        (lambda header: header["enc.0.key"].__setitem__("shape", [5, 2, 6]), "shape"),
        (lambda header: header["enc.0.key"].__setitem__("dtype", "I32"), "int32 .* expected float32"),
    ],
)
def test_a_damaged_header_is_noticed(
    prefix: Prefix, tmp_path: Path, damage: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = tmp_path / "p.safetensors"
    antefix.save_prefix(prefix, path)
    header, data = read_by_hand(path)
    damage(header)
    write_by_hand(path, header, data)
    with pytest.raises(antefix.PrefixFormatError, match=message):
        antefix.load_prefix(path)


def test_numbers_that_are_not_finite_are_noticed(prefix: Prefix, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    antefix.save_prefix(prefix, path)
    whole = path.read_bytes()
    header, data = read_by_hand(path)
    write_by_hand(path, header, struct.pack("<f", float("nan")) + data[4:])
    with pytest.raises(antefix.PrefixFormatError, match="not finite"):
        antefix.load_prefix(path)
    path.write_bytes(whole)
    prefix.keys["dec.0"][0, 2, 1] = float("inf")
    with pytest.raises(antefix.PrefixFormatError, match="not finite, so it was not saved"):
        antefix.save_prefix(prefix, path)
    assert path.read_bytes() == whole


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(antefix.PrefixFormatError, match="no prefix file"):
        antefix.load_prefix(tmp_path / "missing")
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(antefix.PrefixFormatError, match="not a prefix file"):
        antefix.load_prefix(tmp_path / "model.safetensors")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "model.pt")
    with pytest.raises(antefix.PrefixFormatError, match="not an intact safetensors file"):
        antefix.load_prefix(tmp_path / "model.pt")


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    prefix: Prefix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.safetensors"
    antefix.save_prefix(prefix, path)
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        antefix.save_prefix(antefix.concat([prefix, prefix]), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_longest_name_that_a_folder_takes(prefix: Prefix, tmp_path: Path) -> None:
    path = tmp_path / f"{'n' * (255 - len('.safetensors'))}.safetensors"
    antefix.save_prefix(prefix, path)
    assert antefix.load_prefix(path).content_hash() == prefix.content_hash()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a name is text")
def test_a_name_that_is_no_text(prefix: Prefix, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.safetensors")
    antefix.save_prefix(prefix, path)
    assert verify_prefix(path).content_hash() == prefix.content_hash()


def test_what_a_reader_would_refuse_is_not_written(prefix: Prefix, tmp_path: Path) -> None:
    site, long = Site("layer", "decoder", 0, 1, 1, 1), {"layer": torch.zeros(1, 2**20 + 1, 1)}
    with pytest.raises(antefix.PrefixFormatError, match="has 1,048,577 virtual tokens; a prefix has at most 1,048,576"):
        antefix.save_prefix(Prefix((site,), long, long), tmp_path / "p.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="permissions are another thing there")
def test_what_replaces_a_file_keeps_its_permissions_and_a_link_to_it(prefix: Prefix, tmp_path: Path) -> None:
    file, link = tmp_path / "there" / "p.safetensors", tmp_path / "link.safetensors"
    usual = tmp_path / "usual"
    usual.touch()
    antefix.save_prefix(prefix, file)
    assert file.stat().st_mode == usual.stat().st_mode
    file.chmod(0o600)
    link.symlink_to(file)
    other = random_prefix(SITES, 3)
    antefix.save_prefix(other, link)
    assert (link.is_symlink(), stat.S_IMODE(file.stat().st_mode)) == (True, 0o600)
    assert antefix.load_prefix(file).content_hash() == other.content_hash()
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.skipif(os.name == "nt", reason="links are another thing there")
def test_a_link_that_leads_back_to_itself_is_refused(prefix: Prefix, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    there.symlink_to(back)
    back.symlink_to(there)
    with pytest.raises(antefix.ConfigError, match="there' has a link that leads back to itself; name another"):
        antefix.save_prefix(prefix, there)
    assert sorted(tmp_path.iterdir()) == [back, there]


@pytest.mark.parametrize("held", [float("nan"), float("inf"), {1, 2}])
def test_metadata_that_json_cannot_hold_is_refused(prefix: Prefix, tmp_path: Path, held: object) -> None:
    told = Prefix(SITES, prefix.keys, prefix.values, {"score": held})
    with pytest.raises(antefix.ConfigError, match="the metadata of a prefix must be what JSON can hold"):
        antefix.save_prefix(told, tmp_path / "p.safetensors")
    assert not list(tmp_path.iterdir())
