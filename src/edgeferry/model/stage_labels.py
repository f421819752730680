"""The labels of a stage, from wherever its spec says they are.

What this file leaves to others: the lines of a label file (`labels.py`), those in a model file (`inspect.py`).

Rules:
- What reads model files is imported for labels that lie in one: a worker that loads has no other use for it.
"""

from __future__ import annotations

from collections.abc import Callable

from edgeferry.model.labels import read_labels
from edgeferry.model.spec import Stage


def load_labels(stage: Stage, folder_read: Callable[[str], bytes]) -> tuple[str, ...]:
    """The labels of a stage: its names, else its label file, else those packed in its model file.

    Args:
        stage: of the spec.
        folder_read: bytes of a file of the version, by name.

    Raises:
        BundleUnreadable, BundleTooLarge: the label file is no text, or far too long.
        ModelUnreadable: the model file holds no such labels.
    """
    if stage.labels.names:
        return stage.labels.names
    if stage.labels.file:
        return read_labels(folder_read(stage.labels.file))
    if not stage.labels.packed:
        return ()
    from edgeferry.model.inspect import read_packed_labels

    with memoryview(folder_read(stage.file)) as view:
        return read_packed_labels(stage.file, view, stage.labels.packed)
