"""Going on with a run that was interrupted: the settings kept in its folder tell whether it is the same run."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from antefix.errors import ConfigError
from antefix.storage import write_atomically
from antefix.training.checkpoint import TRAINED_NAME
from antefix.training.launch import num_processes
from antefix.training.settings import check_folder

SETTINGS_NAME = "settings.json"


class RunFolder:
    """The folder of a run, whose settings are plain data; `files` names the settings that may be files or folders.

    The content of those counts as a setting, as it may change from one time to the next. So does the number of
    processes, which share a batch between them, but not the path of the folder. Settings named in `later` only count
    once there is a checkpoint.
    """

    def __init__(self, folder: str, settings: dict[str, Any], files: Sequence[str], later: Sequence[str] = ()) -> None:
        self.path = Path(folder)
        self._later = later
        contents = {name: Path(str(settings[name])) for name in files if settings[name] is not None}
        hashes = {f"content of {name}": _hash(path) for name, path in contents.items() if path.exists()}
        processes = {"number of processes": num_processes()}
        kept = {name: value for name, value in settings.items() if name != "output"}
        self._settings: dict[str, Any] = json.loads(json.dumps({**kept, **hashes, **processes}))

    @property
    def checkpoint(self) -> Path | None:
        """The newest checkpoint that was written completely and has not been damaged since; None if there is none."""
        by_step = sorted(self._checkpoints, key=lambda path: int(path.name.partition("-")[2]), reverse=True)
        return next(filter(_is_whole, by_step), None)

    @property
    def is_begun(self) -> bool:
        """Whether a run was begun there."""
        return self._kept_in.exists()

    def check_own(self) -> None:
        """Raise `ConfigError` if the path cannot be a folder, or holds a run of another command."""
        check_folder(self.path)
        kept = self._kept()
        if kept is not None and kept.get("command") != self._settings.get("command"):
            raise ConfigError(f"'{self.path}' holds a run of another command; remove the folder, or name another.")

    def check_free(self) -> None:
        """Raise `ConfigError` if the path cannot be a folder, or holds a run that could be resumed."""
        self.check_own()
        if self.is_begun and (checkpoint := self.checkpoint):
            kept = self._kept()
            if kept is None or self._differences(kept):
                raise ConfigError(
                    f"'{self.path}' holds another run, interrupted after '{checkpoint.name}'; remove the folder, or "
                    "name another."
                )
            raise ConfigError(
                f"'{self.path}' holds this very run, interrupted after '{checkpoint.name}'; go on by --resume, remove "
                "the folder, or name another."
            )

    def check_same(self) -> None:
        """Raise `ConfigError` unless the folder holds this run, to be resumed."""
        self.check_own()
        kept = self._kept()
        if kept is None:
            raise ConfigError(
                f"'{self.path}' holds no unfinished run to resume: it has no {SETTINGS_NAME} that can be read."
            )
        free = self._later if self.checkpoint is None else ()
        if different := [name for name in self._differences(kept) if name not in free]:
            raise ConfigError(
                f"the run in '{self.path}' was begun with another {', '.join(different)}; resume it with the same, "
                "remove the folder, or name another."
            )

    def begin(self) -> None:
        """Write the settings, and remove the checkpoints of a finished run, which nothing shall be resumed from."""
        self.drop_checkpoints()
        write_atomically(self._kept_in, json.dumps(self._settings, indent=2).encode())

    def drop_checkpoints(self) -> None:
        """Remove every checkpoint."""
        for checkpoint in self._checkpoints:
            shutil.rmtree(checkpoint)

    def end(self) -> None:
        """Remove the settings, so that there is nothing to resume."""
        self._kept_in.unlink(missing_ok=True)

    def _kept(self) -> dict[str, Any] | None:
        """Return the settings of the folder's run; None if they cannot be read."""
        try:
            kept = json.loads(self._kept_in.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return kept if isinstance(kept, dict) else None

    def _differences(self, kept: dict[str, Any]) -> list[str]:
        """Return the names of the settings that differ from those of the folder's run."""
        return [name for name, value in self._settings.items() if kept.get(name) != value]

    @property
    def _checkpoints(self) -> list[Path]:
        folders = [path.parent for path in self.path.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINED_NAME}")]
        return [folder for folder in folders if re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-[0-9]+", folder.name)]

    @property
    def _kept_in(self) -> Path:
        return self.path / SETTINGS_NAME


def unfinished(folder: str) -> Path | None:
    """Return the newest checkpoint of an interrupted run in a folder; None if there is none."""
    run = RunFolder(folder, {}, ())
    return run.checkpoint if run.is_begun else None


def _hash(path: Path) -> str:
    """Return the hash of a file, or of all files in a folder with their paths in it."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(os.fsencode(file.relative_to(path)) + f" of {file.stat().st_size} bytes".encode())
            with file.open("rb") as opened:
                while block := opened.read(2**20):
                    digest.update(block)
    return digest.hexdigest()


def _is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint was written completely, which ends with Trainer's state, and has not been damaged.

    What torch saves is a zip archive, whose checksums can be tested without unpickling anything.
    """
    try:
        for file in (path for path in checkpoint.iterdir() if path.suffix in (".pt", ".pth", ".bin")):
            with zipfile.ZipFile(file) as archive:
                if archive.testzip() is not None:
                    return False
        with safe_open(checkpoint / TRAINED_NAME, framework="pt"):
            return isinstance(json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8")), dict)
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile):
        return False
