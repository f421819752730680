"""What each model says of its versions: the refs `active` and `previous`, what was active before, and pins.

What this file leaves to others: whether what a ref names is whole (`repository.py`), what may go (`keeping.py`).

Rules:
- A ref is one small file, replaced atomically; one that cannot be read, or is none of ours, points to nothing.
- `history` lists what was active, newest first. It says what to keep, never what serves: damaged, it is begun anew.
- A pin is an empty file named like the version's folder: there is nothing in it that could be damaged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from edgeferry.errors import InvariantBroken, NameInvalid, StorageError
from edgeferry.names import require_model_name, require_version
from edgeferry.storage.files import (
    fsync_folder,
    make_folder,
    read_bounded,
    remove_tree,
    translate_disk_errors,
    write_atomically,
)
from edgeferry.storage.versions import iterate_folder

RefName = Literal["active", "previous"]
REF_NAMES: tuple[RefName, ...] = ("active", "previous")
HISTORY_FILE = "history"
PINS_FOLDER = "pins"
_REF_MAX_BYTES = 4096
_HISTORY_MAX = 32
_HISTORY_MAX_BYTES = 16 << 10


class Ref(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a ref file holds: the version's name for people, its identity for us."""

    version: str
    identity: str


class Refs:
    """The words of all models below the folder `models`."""

    def __init__(self, models: Path) -> None:
        self._models = models

    def read(self, model: str, name: RefName) -> Ref | None:
        """What the ref says; None when there is none, or none that can be read."""
        try:
            ref = msgspec.json.decode(read_bounded(self._get_path(model, name), _REF_MAX_BYTES), type=Ref)
            require_version(ref.version)
        except (msgspec.MsgspecError, UnicodeDecodeError, NameInvalid, StorageError):
            return None
        return ref

    def list_refs(self, model: str) -> list[Ref]:
        """What both refs say, as far as they can be read."""
        return [ref for name in REF_NAMES if (ref := self.read(model, name)) is not None]

    def write(self, model: str, name: RefName, ref: Ref | None) -> None:
        """Points the ref at a version, or at nothing; whoever reads sees the old or the new."""
        path = self._get_path(model, name)
        if ref is None:
            remove_tree(path)
            fsync_folder(make_folder(path.parent))
            return
        make_folder(path.parent)
        if name == "active":
            self._note_active(model, ref.identity)
        write_atomically(path, msgspec.json.encode(ref))

    def read_history(self, model: str) -> list[str]:
        """Identities of what was active, newest first."""
        try:
            data = read_bounded(self._get_folder(model) / HISTORY_FILE, _HISTORY_MAX_BYTES)
            return msgspec.json.decode(data, type=list[str])
        except (msgspec.MsgspecError, UnicodeDecodeError, StorageError):
            return []

    def _note_active(self, model: str, identity: str) -> None:
        before = self.read_history(model)
        after = [identity, *(one for one in before if one != identity)][:_HISTORY_MAX]
        if after != before:
            write_atomically(self._get_folder(model) / HISTORY_FILE, msgspec.json.encode(after))

    def list_pins(self, model: str) -> frozenset[str]:
        """Names of the version folders that `gc` never takes."""
        return frozenset(path.name for path in iterate_folder(self._get_folder(model) / PINS_FOLDER))

    def pin(self, model: str, folder_name: str) -> None:
        """Keeps the version in the folder of that name until `unpin`."""
        pins = make_folder(self._get_folder(model) / PINS_FOLDER)
        with translate_disk_errors(pins / folder_name):
            (pins / folder_name).touch(0o644)
        fsync_folder(pins)

    def unpin(self, model: str, folder_name: str) -> None:
        """Lets it go again; a pin that is not there is fine."""
        pins = make_folder(self._get_folder(model) / PINS_FOLDER)
        remove_tree(pins / folder_name)
        fsync_folder(pins)

    def _get_folder(self, model: str) -> Path:
        return self._models / require_model_name(model)

    def _get_path(self, model: str, name: RefName) -> Path:
        if name not in REF_NAMES:
            raise InvariantBroken(f"expected a ref called active or previous, found {name!r:.40}")
        return self._get_folder(model) / name
