"""Which run a folder holds, and what of it there is to go on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from antefix.errors import ConfigError
from antefix.training.resume import RunFolder


def folder(path: Path, **settings: Any) -> RunFolder:
    return RunFolder(str(path / "run"), {"output": "anywhere", "data": str(path / "d.jsonl"), **settings}, ["data"])


def write_checkpoint(path: Path, name: str, whole: bool = True) -> Path:
    checkpoint = path / "run" / name
    checkpoint.mkdir(parents=True)
    save_file({"moved": torch.zeros(2)}, checkpoint / "trained.safetensors")
    torch.save({"state": torch.arange(64)}, checkpoint / "optimizer.pt")
    (checkpoint / "trainer_state.json").write_text("{}" if whole else '{"global_st')
    return checkpoint


def test_the_newest_whole_checkpoint_is_gone_on_from(tmp_path: Path) -> None:
    folder(tmp_path).begin()
    assert folder(tmp_path).checkpoint is None
    write_checkpoint(tmp_path, "checkpoint-9")
    newest = write_checkpoint(tmp_path, "checkpoint-20")
    write_checkpoint(tmp_path, "checkpoint-30", whole=False)
    write_checkpoint(tmp_path, "checkpoint-best-100")
    assert folder(tmp_path).checkpoint == newest


@pytest.mark.parametrize("name", ["optimizer.pt", "trained.safetensors"])
@pytest.mark.parametrize("how", ["cut", "a bit"])
def test_a_damaged_checkpoint_is_not_gone_on_from(name: str, how: str, tmp_path: Path) -> None:
    folder(tmp_path).begin()
    older, newer = (write_checkpoint(tmp_path, f"checkpoint-{step}") for step in (1, 2))
    assert folder(tmp_path).checkpoint == newer
    file = newer / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if name == "optimizer.pt" else 0] ^= 0b100
    file.write_bytes(content[:-20] if how == "cut" else content)
    assert folder(tmp_path).checkpoint == older


def test_another_run_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text("{}")
    with pytest.raises(ConfigError, match="holds no unfinished run to resume"):
        folder(tmp_path).check_same()
    folder(tmp_path, seed=1).begin()
    folder(tmp_path, seed=1, output="elsewhere").check_same()
    with pytest.raises(ConfigError, match="begun with another seed; resume it with the same, remove"):
        folder(tmp_path, seed=2).check_same()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="another number of processes"):
        folder(tmp_path, seed=1).check_same()
    monkeypatch.delenv("WORLD_SIZE")
    data.write_text(json.dumps({"a": 1}))
    with pytest.raises(ConfigError, match="another content of data"):
        folder(tmp_path, seed=1).check_same()


def test_an_interrupted_run_is_not_begun_anew_by_accident(tmp_path: Path) -> None:
    """Nor with other settings, which would take its checkpoints away; what belongs to no run stays."""
    folder(tmp_path).begin()
    folder(tmp_path).check_free()
    checkpoint, own = (write_checkpoint(tmp_path, name) for name in ("checkpoint-9", "checkpoint-best-100"))
    with pytest.raises(ConfigError, match="holds this very run, interrupted after 'checkpoint-9'; go on by --resume"):
        folder(tmp_path).check_free()
    with pytest.raises(ConfigError, match="holds another run, interrupted after 'checkpoint-9'; remove the folder"):
        folder(tmp_path, seed=1).check_free()
    with pytest.raises(ConfigError, match="holds a run of another command; remove the folder, or name another"):
        folder(tmp_path, command="other").check_free()
    (tmp_path / "run" / "settings.json").write_text("{")
    with pytest.raises(ConfigError, match="holds another run, interrupted after 'checkpoint-9'; remove the folder"):
        folder(tmp_path).check_free()
    assert checkpoint.exists()
    folder(tmp_path).end()
    folder(tmp_path, seed=1).check_free()
    folder(tmp_path, seed=1).begin()
    assert (checkpoint.exists(), own.exists()) == (False, True)


def test_a_folder_cannot_lie_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for below in ("file/run", "file/run/deeper"):
        with pytest.raises(ConfigError, match=r"but '.*/file' is a file; name a folder"):
            folder(tmp_path / below).check_free()


def test_some_settings_count_from_the_first_checkpoint_on(tmp_path: Path) -> None:
    def run(rate: float) -> RunFolder:
        return RunFolder(str(tmp_path / "run"), {"rate": rate, "seed": 1}, (), later=("rate",))

    run(0.1).begin()
    run(0.2).check_same()
    write_checkpoint(tmp_path, "checkpoint-9")
    with pytest.raises(ConfigError, match="begun with another rate"):
        run(0.2).check_same()
    run(0.1).drop_checkpoints()
    run(0.2).check_same()


def test_the_files_of_a_folder_are_its_content(tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    (data / "part").mkdir(parents=True)
    (data / "part" / "a").write_text("1")
    folder(tmp_path).begin()
    folder(tmp_path).check_same()
    for change in (lambda: (data / "part" / "a").write_text("2"), lambda: (data / "part" / "a").rename(data / "b")):
        change()
        with pytest.raises(ConfigError, match="another content of data"):
            folder(tmp_path).check_same()
        folder(tmp_path).begin()
