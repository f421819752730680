"""Packed notes: what Ultralytics packs into a .tflite, as the same key -> text that it writes into an .onnx.

`metadata.json`, or in Python's notation `temp_meta.txt` of older exports and `meta.txt` of YOLOv5. What the notes mean
is `families/ultralytics.py`'s.

Rules:
- Bounded before they are read; notes that cannot be read are no notes.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec

from edgeferry.model.facts import ModelFacts
from edgeferry.model.inspect_litert import read_packed
from edgeferry.model.literals import LITERAL_MAX_CHARS, read_literal

NOTE_FILES = ("metadata.json", "temp_meta.txt", "meta.txt")


def add_packed_notes(facts: ModelFacts, data: memoryview) -> ModelFacts:
    """The facts with the notes among their metadata instead of their file among those packed: it is none of labels.

    Raises:
        ModelUnreadable: the file of notes is damaged.
    """
    file = next((each for each in facts.packed if each.name in NOTE_FILES), None)
    if file is None:
        return facts
    notes = _read_notes(file.name, read_packed(data, file.name)) if file.size_bytes <= LITERAL_MAX_CHARS else {}
    texts = {key: value if isinstance(value, str) else repr(value) for key, value in notes.items()}
    others = tuple(each for each in facts.packed if each is not file)
    return replace(facts, metadata={**facts.metadata, **texts}, packed=others)


def _read_notes(name: str, data: bytes) -> dict[str, object]:
    try:
        notes = msgspec.json.decode(data) if name.endswith(".json") else read_literal(data.decode())
    except (ValueError, RecursionError):  # MsgspecError and UnicodeDecodeError are ValueErrors
        return {}
    return {key: value for key, value in notes.items() if isinstance(key, str)} if isinstance(notes, dict) else {}
