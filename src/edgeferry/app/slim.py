"""`publish --slim` wired: the operator's folder of pictures and a folder to work in, for `publish/slim_version.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from edgeferry.app.operator import PICTURE_MAX_BYTES, Place
from edgeferry.errors import ConfigInvalid
from edgeferry.publish.publisher import Request, Say
from edgeferry.publish.slim_version import Proposal, Terms, propose_slim
from edgeferry.storage.files import read_bounded, translate_disk_errors

EVAL_MAX_BYTES = 2 << 30
"""All pictures together: they are held in memory, as they are."""


@dataclass(frozen=True, slots=True)
class SlimTerms:
    """What `--slim` was given: the most that may be lost, in points, and the folder of pictures that shows it."""

    max_loss: float
    eval_folder: Path


def propose(request: Request, place: Place, terms: SlimTerms, *, say: Say) -> Proposal:
    """Looks for the shortest version of `request` that loses no more than it may; nothing is published."""
    files = _read_pictures(terms.eval_folder)
    with TemporaryDirectory(prefix="edgeferry-slim-") as folder:
        return propose_slim(request, place.open_desk(), Terms(terms.max_loss, files), folder=Path(folder), say=say)


def _read_pictures(folder: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    left = EVAL_MAX_BYTES
    with translate_disk_errors(folder):
        paths = sorted(path for path in folder.iterdir() if path.is_file())
    for path in paths:
        files[path.name] = read_bounded(path, PICTURE_MAX_BYTES)
        left -= len(files[path.name])
        if left < 0:
            raise ConfigInvalid(f"expected at most {EVAL_MAX_BYTES >> 30} GB of pictures in {folder}, found more")
    return files
