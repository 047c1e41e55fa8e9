"""Going on with a run that was interrupted: the folder tells by its settings whether it is the same run."""

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

from antefix.errors import ConfigError
from antefix.storage import write_atomically
from antefix.training.checkpoint import TRAINED_NAME
from antefix.training.settings import check_folder

SETTINGS_NAME = "settings.json"


class RunFolder:
    """The folder of a run, whose settings are plain data; `files` names those of them that may be files.

    A file's content belongs to the settings, as it could be another the next time, and so does the number of processes,
    which share a batch between them. Where the folder lies does not.
    """

    def __init__(self, folder: str, settings: dict[str, Any], files: Sequence[str]) -> None:
        self.path = Path(folder)
        contents = {name: Path(str(settings[name])) for name in files if settings[name] is not None}
        hashes = {f"content of {name}": _hash(file) for name, file in contents.items() if file.is_file()}
        processes = {"number of processes": int(os.environ.get("WORLD_SIZE", "1"))}
        kept = {name: value for name, value in settings.items() if name != "output"}
        self._settings: dict[str, Any] = json.loads(json.dumps({**kept, **hashes, **processes}))

    @property
    def checkpoint(self) -> Path | None:
        """The newest checkpoint that was written to its end and not damaged since, if there is one."""
        by_step = sorted(self._checkpoints, key=lambda path: int(path.name.partition("-")[2]), reverse=True)
        return next(filter(_is_whole, by_step), None)

    @property
    def is_begun(self) -> bool:
        """Whether a run was begun there."""
        return self._kept_in.exists()

    def check(self, resume: bool) -> None:
        """Raise `ConfigError` where the folder cannot be one, holds no such run to resume, or one that waits for it."""
        check_folder(self.path)
        if not resume:
            if self.is_begun and (checkpoint := self.checkpoint):
                if self._differences():
                    raise ConfigError(
                        f"'{self.path}' holds another run, interrupted after '{checkpoint.name}'; remove the folder, "
                        "or name another."
                    )
                raise ConfigError(
                    f"'{self.path}' holds this very run, interrupted after '{checkpoint.name}'; go on by --resume, "
                    "remove the folder, or name another."
                )
            return
        if different := self._differences():
            raise ConfigError(
                f"the run in '{self.path}' was begun with another {', '.join(different)}; resume it with the same, "
                "remove the folder, or name another."
            )

    def begin(self) -> None:
        """Write down the settings, and drop the checkpoints of a finished run, which are not to be resumed from."""
        for checkpoint in self._checkpoints:
            shutil.rmtree(checkpoint)
        write_atomically(self._kept_in, json.dumps(self._settings, indent=2).encode())

    def end(self) -> None:
        """Leave nothing to resume."""
        self._kept_in.unlink(missing_ok=True)

    def _differences(self) -> list[str]:
        """Return the names of the settings that the folder's run has otherwise."""
        try:
            kept = json.loads(self._kept_in.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"'{self.path}' holds no unfinished run to resume: it has no {SETTINGS_NAME} that can be read."
            ) from error
        now = self._settings
        return [name for name in now if not isinstance(kept, dict) or kept.get(name) != now[name]]

    @property
    def _checkpoints(self) -> list[Path]:
        folders = [path.parent for path in self.path.glob(f"checkpoint-*/{TRAINED_NAME}")]
        return [folder for folder in folders if re.fullmatch(r"checkpoint-[0-9]+", folder.name)]

    @property
    def _kept_in(self) -> Path:
        return self.path / SETTINGS_NAME


def _hash(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _is_whole(checkpoint: Path) -> bool:
    """Tell whether all of a checkpoint was written, of which Trainer's state comes last, and reads as it was written.

    What torch saves is a zip archive, whose checksums tell without unpickling anything.
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
