"""`distill`: from a document to a prefix file, and a report of how near it comes to the document in context."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from antefix.errors import ConfigError, DataError, DivergedError
from antefix.storage import save_prefix, write_atomically
from antefix.training.curve import draw_loss_curve
from antefix.training.distillation.lessons import Lesson, Round
from antefix.training.distillation.prepare import Classroom, prepare
from antefix.training.distillation.report import scores, sizes
from antefix.training.distillation.settings import Distillation
from antefix.training.distillation.study import Study, rounds
from antefix.training.distillation.trainer import DistillationTrainer
from antefix.training.fit import fit
from antefix.training.groups import MIN_TO_DRAW_FROM, group_to_draw_from, num_held_out
from antefix.training.plain_json import as_json
from antefix.training.resume import RunFolder
from antefix.training.trainer import FILE_NAME

LESSONS_NAME = "lessons"
TRAINED_BY = (
    "objective",
    "learning_rate",
    "epochs",
    "gradient_accumulation_steps",
    "weight_decay",
    "warmup_ratio",
    "max_grad_norm",
)
"""Settings of the training alone, on which no lesson depends."""


@dataclass(frozen=True)
class DistillationResult:
    """The files of a distillation, and how the prefix did; `report` is also in `distillation.json`."""

    prefix_path: Path
    report_path: Path
    curve_path: Path | None
    report: dict[str, Any]


def distill(settings: Distillation, console: Console | None = None, resume: bool = False) -> DistillationResult:
    """Make a prefix from a document; nothing is written before document and model are known to fit.

    What was studied and trained so far is in the output folder; `resume` goes on from it, to the same prefix.
    Raises `AntefixError` for bad settings, data or models, `ConfigError` for a folder that holds another distillation.
    """
    console = console or Console(stderr=True)
    run_folder = folder_of(settings)
    _check_folder(run_folder, resume)
    classroom = prepare(settings)
    checkpoint = run_folder.checkpoint if resume else None
    lessons_folder = run_folder.path / LESSONS_NAME
    if not resume:
        # Lessons in a folder without settings may be about any document.
        shutil.rmtree(lessons_folder, ignore_errors=True)
    if checkpoint is None:
        run_folder.begin()
    started = time.monotonic()
    studied = _study(classroom.study, lessons_folder, console)
    trained, held_out = _split_lessons(studied)
    seconds = {"study": time.monotonic() - started}
    questions = classroom.eval_questions
    parts = {"held_out": held_out, "questions": questions.lessons() if questions is not None else []}
    before = classroom.measured(None, parts)
    started = time.monotonic()
    try:
        history = _fit(settings, classroom, trained, checkpoint, console)
    except DivergedError as error:
        run_folder.drop_checkpoints()
        raise DivergedError(f"{error} The lessons are kept: go on by --resume with the lower one.") from error
    seconds["training"] = time.monotonic() - started
    after = classroom.measured(settings.name, parts)
    found = {
        **sizes(classroom, settings.name, studied),
        **scores(parts, before, after, classroom.fits),
        "seconds": seconds,
        "train_loss": history,
        "settings": settings.as_dict(),
    }
    return _write(settings, classroom, found)


def folder_of(settings: Distillation) -> RunFolder:
    """Return the folder in which a distillation by these settings runs."""
    files = "document", "data", "eval_data"
    return RunFolder(settings.output, {"command": "distill", **settings.as_dict()}, files, later=TRAINED_BY)


def _check_folder(run_folder: RunFolder, resume: bool) -> None:
    if resume:
        run_folder.check_same()
        return
    run_folder.check_own()
    if run_folder.is_begun:
        raise ConfigError(
            f"'{run_folder.path}' holds a distillation already; go on by --resume, remove the folder, or name another."
        )


def _study(study: Study, folder: Path, console: Console) -> list[Round]:
    with Progress(console=console) as progress:
        return list(progress.track(rounds(study, folder), total=study.num_rounds, description="studying"))


def _fit(
    settings: Distillation,
    classroom: Classroom,
    lessons: Sequence[Lesson],
    checkpoint: Path | None,
    console: Console,
) -> list[dict[str, float]]:
    """Train the prefix on lessons, from a checkpoint if there is one; return loss by step."""
    make_trainer = functools.partial(
        DistillationTrainer,
        classroom.bank,
        settings.name,
        objective=settings.objective,
        train_dataset=lessons,
        data_collator=classroom.collate,
    )
    num_tokens = sum(len(lesson.ids) for lesson in lessons)
    history, _ = fit(make_trainer, settings, settings.output, num_tokens, console, checkpoint)
    return history


def _split_lessons(studied: Sequence[Round]) -> tuple[list[Lesson], list[Lesson]]:
    """Return the lessons to train on and those held out: all about every tenth question, or else every tenth."""
    lessons = [lesson for one in studied for lesson in one.lessons]
    groups = group_to_draw_from(
        [tuple(lesson.ids[: lesson.is_written.index(True)]) for lesson in lessons],
        [tuple(lesson.ids[: _end_of_question(lesson)]) for lesson in lessons],
        [tuple(lesson.ids) for lesson in lessons],
    )
    chosen = groups[9::10][: num_held_out(groups)]
    if not chosen and len(groups) > 1 and len(lessons) >= MIN_TO_DRAW_FROM:
        chosen = [min(groups, key=len)]  # the base wrote the same few lessons again and again
    if not chosen:
        raise DataError(
            f"the base wrote {len(lessons)} usable lessons, {len(groups)} of them different, too few to hold some out; "
            "raise num_lessons or temperature, or take a base that follows such prompts."
        )
    held_out = {place for group in chosen for place in group}
    return (
        [lesson for number, lesson in enumerate(lessons) if number not in held_out],
        [lessons[number] for number in sorted(held_out)],
    )


def _end_of_question(lesson: Lesson) -> int | None:
    """Return where the last part that the teacher wrote begins, such as an answer; None if it wrote only one."""
    begins = [place for place, (last, now) in enumerate(pairwise(lesson.is_written), start=1) if now and not last]
    return begins[-1] if len(begins) > 1 else None


def _write(settings: Distillation, classroom: Classroom, found: dict[str, Any]) -> DistillationResult:
    folder = Path(settings.output)
    prefix_path, report_path = folder / FILE_NAME, folder / "distillation.json"
    save_prefix(classroom.bank.prefix(settings.name), prefix_path)
    write_atomically(report_path, as_json(found))
    measure, label = ("kl", "KL divergence") if settings.objective == "kl" else ("loss", "loss")
    before, after = (found["held_out"][system][measure] for system in ("base", "prefix"))
    curve = draw_loss_curve(found["train_loss"], before, after, f"{label} (nats per token)", folder / "loss.png")
    return DistillationResult(prefix_path, report_path, curve, found)
