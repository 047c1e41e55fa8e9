"""Going on with a run that was interrupted: the folder tells by its settings whether it is the same run."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from antefix.errors import ConfigError
from antefix.storage import write_atomically
from antefix.training.checkpoint import TRAINED_NAME

SETTINGS_NAME = "settings.json"


class RunFolder:
    """The folder of a run, whose settings are plain data; `files` names those of them that may be files.

    A file's content belongs to the settings: it could be another the next time.
    """

    def __init__(self, folder: str, settings: dict[str, Any], files: Sequence[str]) -> None:
        self.path = Path(folder)
        contents = {name: Path(str(settings[name])) for name in files if settings[name] is not None}
        hashes = {
            f"content of {name}": hashlib.sha256(file.read_bytes()).hexdigest()
            for name, file in contents.items()
            if file.is_file()
        }
        self._settings: dict[str, Any] = json.loads(json.dumps({**settings, **hashes}))

    @property
    def checkpoint(self) -> str | None:
        """The newest checkpoint that was written to its end, if there is one."""
        by_step = sorted(self._checkpoints, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
        return next((str(path) for path in by_step if _is_whole(path)), None)

    @property
    def is_begun(self) -> bool:
        """Whether a run was begun there."""
        return self._kept_in.exists()

    def check(self, resume: bool) -> None:
        """Raise `ConfigError` where the folder is a file, or holds no such run to resume."""
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"output is '{self.path}', which is a file; name a folder.")
        if not resume:
            return
        try:
            kept = json.loads(self._kept_in.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"'{self.path}' holds no run to resume: '{self._kept_in}' cannot be read.") from error
        now = self._settings
        different = [name for name in now if not isinstance(kept, dict) or kept.get(name) != now[name]]
        if different:
            raise ConfigError(
                f"the run in '{self.path}' was begun with another {', '.join(different)}; resume it with the same."
            )

    def begin(self) -> None:
        """Write down the settings, and drop the checkpoints of a run before, which are not to be resumed from."""
        for checkpoint in self._checkpoints:
            shutil.rmtree(checkpoint)
        write_atomically(self._kept_in, json.dumps(self._settings, indent=2).encode())

    @property
    def _checkpoints(self) -> list[Path]:
        folders = [path.parent for path in self.path.glob(f"checkpoint-*/{TRAINED_NAME}")]
        return [folder for folder in folders if folder.name.rpartition("-")[2].isdecimal()]

    @property
    def _kept_in(self) -> Path:
        return self.path / SETTINGS_NAME


def _is_whole(checkpoint: Path) -> bool:
    """Tell whether all of a checkpoint was written, of which Trainer's state comes last."""
    try:
        return isinstance(json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False
