"""Prefix files: one safetensors file, versioned, written atomically. `docs/format.md` has every byte."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from antefix.errors import ConfigError, PrefixFormatError, on_one_line
from antefix.prefix import Prefix, own_copy
from antefix.sites import Site

FORMAT = "antefix.prefix"
VERSION = "1"
MAX_SITES = 2**16
MAX_VIRTUAL_TOKENS = 2**20
"""What a file may hold, far above any model there is: a reader need not trust it with more."""
_MAX_BYTES_OF_HEADER = 100_000_000  # safetensors' own limit


def save_prefix(prefix: Prefix, path: str | os.PathLike[str]) -> None:
    """Write a prefix to a file; whoever reads the path meanwhile sees the old file or the new one, never a part.

    Raises `ConfigError` for metadata that JSON cannot hold, `PrefixFormatError` for numbers that are not finite and
    for more of them than a file may hold.
    """
    _check_at_most(MAX_SITES, len(prefix.sites), "sites", f"the prefix for '{path}'")
    _check_at_most(MAX_VIRTUAL_TOKENS, prefix.num_virtual_tokens, "virtual tokens", f"the prefix for '{path}'")
    tensors = {name: own_copy(tensor) for name, tensor in prefix.modules.items()}
    for site in prefix.sites:
        for part, held in (("key", prefix.keys), ("value", prefix.values)):
            tensors[f"{site.path}.{part}"] = own_copy(held[site.path])
    if not are_finite(tensors.values()):
        raise PrefixFormatError(
            f"the prefix for '{path}' holds numbers that are not finite, so it was not saved; where training diverged, "
            "lower the learning rate."
        )
    try:
        extra = json.dumps(dict(prefix.metadata), allow_nan=False)  # Python would write NaN, which is no JSON
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the metadata of a prefix must be what JSON can hold: {error}.") from error
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "num_virtual_tokens": str(prefix.num_virtual_tokens),
        "sites": json.dumps([asdict(site) for site in prefix.sites]),
        "metadata": extra,
        **_hashes(prefix),
    }
    write_atomically(Path(path), save(tensors, metadata))


def load_prefix(path: str | os.PathLike[str]) -> Prefix:
    """Read a prefix from a file; raises `PrefixFormatError` for one that is not intact."""
    return _read(Path(path))[0]


def verify_prefix(path: str | os.PathLike[str]) -> Prefix:
    """Read a prefix as `load_prefix` does, and hold it against the hashes that it was saved with.

    One is of sites, keys and values, one of the modules trained beside them; the first files tell neither.
    """
    prefix, header = _read(Path(path))
    if any(header.get(name, now) != now for name, now in _hashes(prefix).items()):
        raise PrefixFormatError(f"'{path}' holds other numbers than it was saved with; it was damaged or changed.")
    return prefix


def read_tensors(
    path: Path, check: Callable[[Mapping[str, str], Path], None] | None = None
) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Return metadata and tensors of a safetensors file; `check` may refuse by its metadata before more is read.

    The file is opened once and read, not mapped: one that is put in its place meanwhile changes nothing, and one that
    is written over is cut short, where the pages of a mapped one would be gone and the process with them (SIGBUS).
    Raises `PrefixFormatError` for one that is not intact.
    """
    try:
        with path.open("rb") as file:
            start, metadata = _start_of(file)
            if check is not None:
                check(metadata, path)
            content = start + file.read()
        with torch.inference_mode(False):  # what is kept may be of use to a training step, too
            return metadata, load(content)
    except (SafetensorError, OSError, KeyError) as error:  # KeyError: a type that torch does not have
        raise PrefixFormatError(f"'{path}' is not an intact safetensors file: {_short(error)}.") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file's content whole: write beside it, flush to disk, rename."""
    write_together({path: content})


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Replace several files, none of them before all are on the disk; raises `ConfigError` for what is a folder.

    What replaces a file keeps its permissions, and a link stays one.
    """
    written: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            if path.is_dir():
                raise ConfigError(f"'{path}' is a folder; name a file.")
            place = _without_links(path)
            place.parent.mkdir(parents=True, exist_ok=True)
            written[place] = temporary = place.with_name(f".antefix-{secrets.token_hex(8)}")
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if place.exists():
                shutil.copymode(place, temporary)
        for place, temporary in written.items():
            os.replace(temporary, place)
    except BaseException:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)
        raise


def _without_links(path: Path) -> Path:
    try:
        place = path.resolve()
        is_circle = place.is_symlink()  # so leaves it Python from 3.13 on
    except RuntimeError:
        is_circle = True
    if is_circle:
        raise ConfigError(f"the path '{path}' has a link that leads back to itself; name another.")
    return place


def _hashes(prefix: Prefix) -> dict[str, str]:
    """Return by their names in the header the SHA-256 of what a prefix holds, and of the modules beside it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(prefix.modules.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return {"content": prefix.content_hash(), "modules": digest.hexdigest()}


def _start_of(file: BinaryIO) -> tuple[bytes, dict[str, str]]:
    """Read a file up to its numbers; return that, and its metadata, which safetensors checks with all of the file."""
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if length > _MAX_BYTES_OF_HEADER:
        raise SafetensorError("its header is too long")
    start += file.read(length)
    try:
        header = json.loads(start[8:])
    except (ValueError, RecursionError) as error:
        raise SafetensorError(f"its header is no JSON: {error}") from error
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    return start, metadata if isinstance(metadata, dict) else {}


def _read(path: Path) -> tuple[Prefix, dict[str, str]]:
    """Return a prefix and the header that it was read with."""
    if path.is_dir():
        raise PrefixFormatError(
            f"'{path}' is a folder; name a prefix file in it, or make one of PEFT's checkpoint by antefix convert."
        )
    if not path.is_file():
        raise PrefixFormatError(f"there is no prefix file at '{path}'.")
    header, tensors = read_tensors(path, _check_header)
    sites, metadata = _read_header(header, path)
    _check_names(set(tensors), sites, path)
    return _assemble(path, header, sites, tensors, metadata), header


def _check_header(header: Mapping[str, str], path: Path) -> None:
    if header.get("format") != FORMAT:
        raise PrefixFormatError(
            f"'{path}' is a safetensors file, but not a prefix file (format='{FORMAT}' is missing)."
        )
    if header.get("version") != VERSION:
        raise PrefixFormatError(
            f"'{path}' has format version {_short(header.get('version'))}; this antefix reads version {VERSION}."
        )


def _read_header(header: Mapping[str, str], path: Path) -> tuple[tuple[Site, ...], dict[str, Any]]:
    try:
        sites = tuple(_read_site(entry) for entry in json.loads(header["sites"]))
        metadata = json.loads(header["metadata"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise PrefixFormatError(f"the header of '{path}' is damaged: {_short(error)}.") from error
    if not isinstance(metadata, dict):
        raise PrefixFormatError(f"the header of '{path}' is damaged: its metadata is not an object.")
    _check_at_most(MAX_SITES, len(sites), "sites", f"'{path}'")
    return sites, metadata


def _check_names(names: set[str], sites: Sequence[Site], path: Path) -> None:
    expected = {f"{site.path}.{part}" for site in sites for part in ("key", "value")}
    odd = sorted({name for name in names if ":" not in name} ^ expected)
    if odd:
        raise PrefixFormatError(
            f"'{path}' does not hold the tensors its header lists; the first at odds is '{_short(odd[0])}'."
        )


def _read_site(entry: Mapping[str, Any]) -> Site:
    types = {field.name: int for field in fields(Site)} | {"path": str, "kind": str}
    if set(entry) != set(types) or any(type(entry[name]) is not kind for name, kind in types.items()):
        raise ValueError(f"a site is described as {entry}")
    return Site(**entry)


def _assemble(
    path: Path,
    header: Mapping[str, str],
    sites: tuple[Site, ...],
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, Any],
) -> Prefix:
    try:
        prefix = Prefix(
            sites=sites,
            keys={site.path: tensors[f"{site.path}.key"] for site in sites},
            values={site.path: tensors[f"{site.path}.value"] for site in sites},
            metadata=metadata,
            modules={name: tensor for name, tensor in tensors.items() if ":" in name},
        )
    except PrefixFormatError as error:
        raise PrefixFormatError(f"'{path}' is damaged: {_short(error)}") from error
    if header.get("num_virtual_tokens") != str(prefix.num_virtual_tokens):
        told = _short(header.get("num_virtual_tokens"))
        raise PrefixFormatError(f"'{path}' names {told} virtual tokens and holds {prefix.num_virtual_tokens}.")
    _check_at_most(MAX_VIRTUAL_TOKENS, prefix.num_virtual_tokens, "virtual tokens", f"'{path}'")
    if not are_finite(tensors.values()):
        raise PrefixFormatError(f"'{path}' holds numbers that are not finite.")
    return prefix


def are_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Return whether tensors hold neither NaN nor infinity."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _check_at_most(most: int, held: int, of: str, what: str) -> None:
    if held > most:
        raise PrefixFormatError(f"{what} has {held:,} {of}; a prefix has at most {most:,}.")


def _short(told: object) -> str:
    """Return what a file says of itself on one line, cut where it goes on for long."""
    line = on_one_line(told)
    return line if len(line) <= 200 else f"{line[:200]} ..."
