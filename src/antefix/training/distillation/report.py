"""The result of a distillation: how near the prefix comes to the document in context, and what each costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from antefix.training.distillation.document import num_covered
from antefix.training.distillation.lessons import Lesson, Round
from antefix.training.distillation.prepare import Classroom, Scores


def sizes(classroom: Classroom, name: str, studied: Sequence[Round]) -> dict[str, Any]:
    """Return tokens and bytes of document and prefix, how much of the document the teacher saw, and lesson counts.

    Bytes are those of keys and values in the dtype of the model.
    """
    prefix, num_tokens = classroom.bank.prefix(name), classroom.document.num_tokens
    bytes_of = classroom.bank.model.dtype.itemsize * sum(site.width for site in prefix.sites)
    lessons = [lesson for one in studied for lesson in one.lessons]
    seen = num_covered((one.start, one.end) for one in studied)
    return {
        "document": {"tokens": num_tokens, "bytes": num_tokens * bytes_of},
        "prefix": {"tokens": prefix.num_virtual_tokens, "bytes": prefix.num_virtual_tokens * bytes_of},
        "teacher": {"tokens_at_once": min(classroom.study.chunk_length, num_tokens), "share_seen": seen / num_tokens},
        "lessons": {
            "usable": len(lessons),
            "discarded": sum(one.num_discarded for one in studied),
            "written_tokens": sum(len(lesson.targets.own) for lesson in lessons),
        },
    }


def scores(parts: Mapping[str, Sequence[Lesson]], before: Scores, after: Scores, fits: bool) -> dict[str, Any]:
    """Return loss, and divergence from the document in context, of the bare base, the document and the prefix.

    For lessons held out, the document is the chunk that the teacher read, of `tokens_at_once` as `sizes` says. For
    questions about a document that does not fit into the context, there is no document and no divergence to compare.
    """
    found: dict[str, Any] = {}
    for name, lessons in parts.items():
        if not lessons:
            continue
        own = [value for lesson in lessons for value in lesson.targets.own.tolist()]
        found[name] = {
            "base": before[name],
            "document": {"loss": -sum(own) / len(own), "kl": 0.0},
            "prefix": after[name],
        }
        if name == "questions" and not fits:
            found[name] = {system: {"loss": found[name][system]["loss"]} for system in ("base", "prefix")}
    return found
