"""Golden gate: would a device take this model file? Its golden pictures are asked before anything is published.

What this file leaves to others: the rule (`vision/golden.py`), pairing pictures with truths (`golden.py`).

Rules:
- The same engine, thresholds and pooled rule as on a device: what it would refuse is refused here.
- Golden truth that is inherited lies in the store; a picture that is missing there is an error, never a pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgeferry.errors import MetadataUntrusted
from edgeferry.model.digest import Digest
from edgeferry.model.manifest import Golden
from edgeferry.model.spec import ModelSpec
from edgeferry.publish.golden import GoldenSet
from edgeferry.runtime.served import PictureSettings, load_served, make_terms
from edgeferry.runtime.session import EngineSettings
from edgeferry.storage.files import make_folder, write_atomically
from edgeferry.trust.draft import ObjectReader
from edgeferry.vision.image import PictureLimits
from edgeferry.wire.worker_frames import GoldenInput


class GoldenGate:
    """Asks versions of one model file about golden pictures."""

    def __init__(
        self, spec: ModelSpec, files: Mapping[str, bytes], golden: GoldenSet, *, store: ObjectReader, folder: Path
    ) -> None:
        """Puts files and pictures into an empty folder.

        Raises:
            MetadataUntrusted: the store lacks a picture, or has another one.
        """
        self._spec, self._folder = spec, make_folder(folder / "version")
        for name, data in files.items():
            write_atomically(self._folder / name, data)
        pictures, self._samples = make_folder(folder / "golden"), list[GoldenInput]()
        for sample in golden.samples:
            digest = Digest.from_str(sample.input)
            data = (golden.pictures or {}).get(digest) or _read_picture(store, sample, digest)
            write_atomically(pictures / digest.hex, data)
            self._samples.append(GoldenInput(sample, str(pictures / digest.hex)))

    def find_fault(self, name: str, data: bytes) -> str:
        """Why a device would refuse the version with `data` as its file `name`; empty when it would not."""
        if not self._samples:
            return ""
        write_atomically(self._folder / name, data)
        served = load_served(self._folder, self._spec, EngineSettings(), PictureSettings(PictureLimits()))
        report = served.prove(make_terms(self._folder, self._spec), self._samples)
        if report.passed:
            return ""
        why = f"; {report.details[0]}" if report.details else ""
        return f"{report.found} of {report.total} golden truths are found, {report.needed:g} are needed{why}"


def _read_picture(store: ObjectReader, sample: Golden, digest: Digest) -> bytes:
    found = store.find(digest.blob_path, sample.size)
    if found is None or Digest.of(found[0]) != digest:
        raise MetadataUntrusted(f"the golden picture {digest} is missing or was changed in the store; give --golden")
    return found[0]
