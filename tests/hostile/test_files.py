"""Ten thousand damaged files: each is read as a whole prefix or refused in one sentence, and nothing else happens."""

from __future__ import annotations

import json
import random
import resource
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import antefix
from antefix.initialize import random_prefix
from antefix.prefix import Prefix
from antefix.sites import Site

SITES = (Site("enc.0", "encoder", 0, 2, 6, 4), Site("dec.0", "decoder", 0, 1, 3, 3))
NUM_MUTATIONS = 10_000
ODD = (
    None,
    -1,
    0,
    1,
    2**31,
    2**63,
    2**64,
    1e400,
    "",
    "F32",
    "BOOL",
    [],
    {},
    [[]],
    "\ud800",
    "../../etc/passwd",
    "x" * 999,
)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    torch.manual_seed(0)
    made = random_prefix(SITES, 5)
    prefix = Prefix(SITES, made.keys, made.values, {"base_model": "tiny"}, {"head:weight": torch.randn(2, 3)})
    path = tmp_path_factory.mktemp("whole") / "p.safetensors"
    antefix.save_prefix(prefix, path)
    return path.read_bytes()


def _in_bytes(rng: random.Random, content: bytes) -> bytes:
    """Damage bytes anywhere: cut, flip, overwrite, insert or take out."""
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.choice((1, 2, 8, 64, 1024)))
    noise = bytes(rng.getrandbits(8) for _ in range(end - start))
    return rng.choice(
        (
            content[:start],
            content[:start] + bytes([content[start] ^ (1 << rng.randrange(8))]) + content[start + 1 :],
            content[:start] + noise + content[end:],
            content[:start] + noise + content[start:],
            content[:start] + content[end:],
            content + noise,
        )
    )


def _in_length(rng: random.Random, content: bytes) -> bytes:
    """Lie about the length of the header."""
    length = rng.choice((0, 1, 7, 2**20, 2**31, 2**32, 2**63, 2**64 - 1, rng.randrange(2 * len(content))))
    return struct.pack("<Q", length) + content[8:]


def _in_header(rng: random.Random, content: bytes) -> bytes:
    """Change something in the header, and leave the rest intact."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    _change(rng, header)
    encoded = json.dumps(header)
    if rng.random() < 0.1:  # a key twice
        name = rng.choice(list(header) or [""])
        encoded = "{" + f"{json.dumps(name)}: {json.dumps(rng.choice(ODD))}, " + encoded[1:]
    return struct.pack("<Q", len(encoded)) + encoded.encode("utf-8", "surrogatepass") + content[8 + length :]


def _change(rng: random.Random, header: dict[str, Any]) -> None:
    name = rng.choice(list(header))
    entry = header[name]
    match rng.randrange(6):
        case 0:
            header[rng.choice(("enc.9.key", "", name + ".key", "x:y"))] = header.pop(name)
        case 1:
            entry[rng.choice(list(entry))] = rng.choice(ODD)
        case 2 if "data_offsets" in entry:
            other = rng.choice([one for one in header.values() if "data_offsets" in one])
            entry["data_offsets"] = list(other["data_offsets"])
        case 3 if "shape" in entry:
            entry["shape"] = rng.choice(([], [0], [2**32, 2**32], entry["shape"][::-1], [*entry["shape"], 1]))
        case 4 if "dtype" in entry:
            entry["dtype"] = rng.choice(("F64", "F16", "BF16", "I8", "U64", "F8_E4M3", "?"))
        case _ if name == "__metadata__":
            field = rng.choice(list(entry))
            entry[field] = rng.choice(("[]", "{}", "[" * 50_000, "null", "1e999", '"', entry[field].replace("1", "9")))
        case _:
            header.pop(name)


def _in_numbers(rng: random.Random, content: bytes) -> bytes:
    """Put a number that is not finite among the data."""
    (length,) = struct.unpack("<Q", content[:8])
    place = 8 + length + 4 * rng.randrange((len(content) - 8 - length) // 4)
    number = struct.pack("<f", rng.choice((float("nan"), float("inf"), float("-inf"))))
    return content[:place] + number + content[place + 4 :]


MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (_in_bytes, _in_length, _in_header, _in_numbers)


def test_a_damaged_file_is_refused_or_read_whole(content: bytes, tmp_path: Path) -> None:
    rng, path = random.Random(20261125), tmp_path / "p.safetensors"
    refused: list[str] = []
    for _ in range(NUM_MUTATIONS):
        damaged = rng.choice(MUTATIONS)(rng, content)
        path.write_bytes(damaged)
        try:
            prefix = antefix.load_prefix(path)
        except antefix.PrefixFormatError as error:
            refused.append(str(error))
            continue
        assert all(bool(t.isfinite().all()) for t in (*prefix.keys.values(), *prefix.values.values()))
        assert prefix.num_virtual_tokens >= 1
    assert len(refused) > 0.8 * NUM_MUTATIONS
    assert all(str(path) in message for message in refused), "each says which file"
    assert all("\n" not in message and len(message) < 1000 for message in refused), "each is one sentence"
    assert path.read_bytes() == damaged
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.safetensors"]


def test_lies_about_sizes_take_no_memory(content: bytes, tmp_path: Path) -> None:
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for size in (2**24, 2**31, 2**40, 2**62):
        entry = header["enc.0.key"]
        entry["shape"] = [2, size, 6]
        entry["data_offsets"] = [entry["data_offsets"][0], entry["data_offsets"][0] + 48 * size]
        encoded = json.dumps(header).encode()
        path = tmp_path / "p.safetensors"
        path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])
        with pytest.raises(antefix.PrefixFormatError):
            antefix.load_prefix(path)
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 64 * 2**20
