"""What is released: a wheel with everything that the library reads, and a source archive that makes the same wheel."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

from tests.release.conftest import ROOT, build


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
    _, wheel = build(source, tmp_path)
    assert _modules(wheel) == _modules(built[1])
