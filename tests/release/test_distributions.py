"""What is released: a wheel with everything that the library reads, and a source archive that makes the same wheel."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = """
import sys
from setuptools import build_meta
folder = sys.argv[1]  # setuptools changes the arguments
print(build_meta.build_sdist(folder), build_meta.build_wheel(folder), sep="\\n")
"""


def _build(source: Path, folder: Path) -> tuple[Path, Path]:
    """Build both of a source tree and return their paths."""
    command = [sys.executable, "-W", "ignore", "-c", BUILD, str(folder)]
    done = subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)
    archive, wheel = done.stdout.splitlines()[-2:]
    return folder / archive, folder / wheel


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Build from a copy of what is under version control, so that nothing is left in the tree."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    return _build(source, folder)


def _modules(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as file:
        return {name for name in file.namelist() if name.startswith("antefix/")}


def test_the_wheel_has_what_the_library_reads(built: tuple[Path, Path]) -> None:
    held = _modules(built[1])
    source = ROOT / "src"
    expected = {str(path.relative_to(source)) for path in (source / "antefix").rglob("*.py")}
    model = {str(path.relative_to(source)) for path in (source / "antefix" / "embedded" / "model").iterdir()}
    assert held == expected | model | {"antefix/py.typed"}


def test_the_source_archive_makes_the_same_wheel(built: tuple[Path, Path], tmp_path: Path) -> None:
    with tarfile.open(built[0]) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    _, wheel = _build(source, tmp_path)
    assert _modules(wheel) == _modules(built[1])
