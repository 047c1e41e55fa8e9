"""Seed prompts: what a base is asked to write about a part of a document, so that it studies the document by itself."""

from __future__ import annotations

KINDS = ("question", "note", "summary")

OPENINGS = {"question": ("Question:", "Answer:"), "note": ("Note:",), "summary": ("Summary:",)}
"""For a base that continues text: the words that open each line; the base writes the rest of the line."""

INSTRUCTIONS = {
    "question": "Ask one question that the text above answers, about any part of it, big or small. "
    "Name what you ask about, so that the question is clear without the text. Write the question only.",
    "note": "Choose a part of the text above, and ask for its facts as a structured note, such as a list or JSON. "
    "Name the part, so that the request is clear without the text. Write the request only.",
    "summary": "Choose the whole or a part of the text above, and ask for a summary of it. "
    "Name it, so that the request is clear without the text. Write the request only.",
}
"""For a base that holds conversations: what it is told to write, which it is then asked."""
