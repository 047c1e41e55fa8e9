"""Every Python block of the documentation runs, page by page, in an empty folder; the README's do in tests/release."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVING = ROOT / "docs" / "serving.md"
"""Its blocks run where vLLM is: tests/vllm/test_quickstart.py."""
PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if page != SERVING]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.name)
def test_code_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name == "peft.md":
        pytest.importorskip("peft", reason="PEFT is not installed")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, block in enumerate(python_blocks(page), start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)


def test_the_pages_with_code_are_the_ones_meant() -> None:
    assert {page.name for page in PAGES if python_blocks(page)} >= {
        "walkthrough.md",
        "training.md",
        "peft.md",
    }


def test_the_changelog_names_this_version() -> None:
    import antefix

    assert f"## {antefix.__version__}" in (ROOT / "CHANGELOG.md").read_text()
