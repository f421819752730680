"""Names that come from outside: checked in one place, on the way in and on the way out.

Rules:
- A model name is `[a-z0-9][a-z0-9_-]{0,62}`: it becomes a folder, a TUF role and a part of URLs.
- A version is `[0-9A-Za-z][0-9A-Za-z._+-]{0,63}` without `..`: it becomes a folder.
- An id of a device or module is 1 to 128 of IoT Hub's signs without % # +, which mean something in a topic.
- A file name is one path component: no separators, no control characters, not `.` or `..`, at most 255 bytes.
"""

from __future__ import annotations

import re

from edgeferry.errors import NameInvalid

_MODEL = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+-]{0,63}")
HUB_ID_PATTERN = r"[A-Za-z0-9\-:._*?!(),=@$']{1,128}"
_HUB_ID = re.compile(HUB_ID_PATTERN)
_FORBIDDEN_IN_FILE = re.compile(r"[\x00-\x1f\x7f/\\:]")
FILE_NAME_MAX_BYTES = 255


def require_model_name(name: str) -> str:
    """Returns `name` when it is a model name; raises NameInvalid otherwise."""
    if not isinstance(name, str) or not _MODEL.fullmatch(name):
        raise NameInvalid(f"expected a model name like 'detector' ([a-z0-9][a-z0-9_-]{{0,62}}), found {name!r:.80}")
    return name


def require_version(version: str) -> str:
    """Returns `version` when it may name a version folder; raises NameInvalid otherwise."""
    if not isinstance(version, str) or not _VERSION.fullmatch(version) or ".." in version:
        raise NameInvalid(f"expected a version like '1.0.0' (letters, digits, . _ + -), found {version!r:.80}")
    return version


def require_hub_id(name: object) -> str:
    """Returns `name` when it may name a device or module of a hub; raises NameInvalid otherwise."""
    if not isinstance(name, str) or not _HUB_ID.fullmatch(name):
        raise NameInvalid(f"expected an id of 1 to 128 letters, digits or -:._*?!(),=@$', found {name!r:.80}")
    return name


def require_file_name(name: str) -> str:
    """Returns `name` when it is one harmless path component; raises NameInvalid otherwise."""
    harmless = isinstance(name, str) and name not in ("", ".", "..") and not _FORBIDDEN_IN_FILE.search(name)
    if not harmless or len(name.encode("utf-8", "surrogatepass")) > FILE_NAME_MAX_BYTES:
        raise NameInvalid(f"expected a plain file name without separators, found {name!r:.80}")
    return name


def get_stem(file_name: str) -> str:
    """File name without its last extension: `tensorflow001.zip` -> `tensorflow001`."""
    stem, dot, _ = file_name.rpartition(".")
    return stem if dot and stem else file_name
