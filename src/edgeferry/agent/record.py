"""Target, Artifact and UpdateRecord: what this device was asked to run, what that takes, and how far it has come.

What this file leaves to others: making targets from a twin and artifacts from a manifest (`plan.py`), moving a record
from state to state (`lane.py`).

Rules:
- Frozen values. A record is one row of the journal and round-trips through its bytes.
- A record holds no secret: URLs, SAS and other things that may be renewed stand in the Target.
- One record per key: (model, manifest digest, try), for classic updates (FileName, ContentMD5, URL without its query).
  The same key is the same update, whatever SAS its URL carries today.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from edgeferry.agent.machine import State
from edgeferry.errors import StorageFailed
from edgeferry.model.digest import Digest
from edgeferry.names import get_stem
from edgeferry.vision.agreement import AgreementReport

Kind = Literal["signed", "classic", "local"]
"""From our section and a signed repository; from the guide's three fields; from another module's message."""

CANCELLED = "cancelled"
_STRANGE = re.compile(r"[^0-9A-Za-z._+-]+|\.\.+")


class Target(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A version that this device is asked to run now, and where it is to be had today."""

    kind: Kind
    model: str
    version: str
    key: str
    identity: str
    """`sha256:<hex>`: the manifest's digest; for the other kinds the digest of the key."""
    try_: int = 1
    priority: int = 0
    repo: str = ""
    sas: str = ""
    file_name: str = ""
    url: str = ""
    md5: str = ""
    model_path: str = ""
    label_path: str = ""
    """For `local`: relative to the storage root, already confined to it."""


class Artifact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One download: `size` bytes of `blob` that become `target_size` bytes of `target`. Classic: nothing is known."""

    kind: Literal["full", "patch", "classic"] = "full"
    blob: str = ""
    size: int = 0
    codec: str = "none"
    memory: int = 0
    base: str = ""
    target: str = ""
    target_size: int = 0
    chunks: str = ""
    """The blob that lists the pieces of `blob`, where there is one."""


class Fault(msgspec.Struct, frozen=True, omit_defaults=True):
    """The last error of an update, as the twin and the CLI show it."""

    code: str
    message: str
    advice: str


class UpdateRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One update, as the journal holds it. Times are Unix seconds."""

    kind: Kind
    model: str
    version: str
    key: str
    identity: str
    try_: int = 1
    priority: int = 0
    file_name: str = ""
    state: State = State.RESOLVING
    resume: State | None = None
    """For WAITING: the state it came from."""
    retry_at: float = 0.0
    retries: int = 0
    artifacts: tuple[Artifact, ...] = ()
    index: int = 0
    whole: bool = False
    """A patch has failed: only full downloads from now on."""
    damages: int = 0
    """How often the bytes of the artifact at `index` did not have its digest."""
    stalled: int = 0
    mark: tuple[int, int] = (0, 0)
    unclean_boots: int = 0
    boot: str = ""
    switched_at: float = 0.0
    began_at: float = 0.0
    changed_at: float = 0.0
    fault: Fault | None = None
    shadow: AgreementReport | None = None
    """How far this version agreed with the one before it, where it was tried in its shadow."""

    @property
    def artifact(self) -> Artifact:
        """The artifact that is being walked through now."""
        return self.artifacts[self.index]


def make_record(target: Target, now: float = 0.0) -> UpdateRecord:
    """A fresh record for `target`; one from another module's message needs no download and enters at PROVING."""
    return UpdateRecord(
        kind=target.kind,
        model=target.model,
        version=target.version,
        key=target.key,
        identity=target.identity,
        try_=target.try_,
        priority=target.priority,
        file_name=target.file_name,
        began_at=now,
        changed_at=now,
        state=State.PROVING if target.kind == "local" else State.RESOLVING,
    )


def make_signed_key(model: str, manifest: Digest, try_: int) -> str:
    """The key of an update from our section."""
    return f"{model}|{manifest}|{try_}"


def make_classic_key(file_name: str, md5: str, url_without_query: str) -> str:
    """The key of a classic update."""
    return f"classic|{file_name}|{md5}|{url_without_query}"


def make_local_version(file_name: str, identity: Digest) -> str:
    """A version for what names none: the stem made harmless, and a piece of the identity so that no two share it."""
    stem = _STRANGE.sub("-", get_stem(file_name)).strip(".-_+")[:48]
    return f"{stem or 'model'}-{identity.hex[:8]}"


def change(record: UpdateRecord, **fields: object) -> UpdateRecord:
    """The record with some fields changed."""
    return msgspec.structs.replace(record, **fields)


_DECODER = msgspec.json.Decoder(UpdateRecord)
_TARGET_DECODER = msgspec.json.Decoder(Target)


def write_record_bytes(record: UpdateRecord) -> bytes:
    """The record as the journal holds it."""
    return msgspec.json.encode(record)


def read_record_bytes(body: bytes) -> UpdateRecord:
    """Raises StorageFailed when the journal's row is not a record of this release."""
    try:
        return _DECODER.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StorageFailed("expected an update record in the journal, found something else") from error


def read_target_bytes(body: bytes) -> Target:
    """Raises StorageFailed when the journal's row is not a target of this release."""
    try:
        return _TARGET_DECODER.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StorageFailed("expected a target in the journal, found something else") from error
