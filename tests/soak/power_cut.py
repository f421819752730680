"""A machine that loses its power: what no fsync has covered is taken away from the folder of a killed process.

What this file leaves to others: killing the process, and telling what it does (`crash_calls.py`).

Rules:
- A name is durable once its folder was fsynced, bytes once their file was. What was not is undone from the end: all of
  it, or all after some point (a file system with a journal keeps the order).
- What was replaced or removed is kept beside the storage by a hard link, until the process is gone.
- SQLite's files are left alone: it syncs by itself, out of our sight.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import threading
from collections.abc import Callable
from os import link, lstat, readlink
from os import open as plain_open
from os import write as plain_write
from pathlib import Path
from typing import Any

_NOT_OURS = "journal.db"


class DiskLog:
    """Notes, from inside the process that will be killed, what it does below `root`; everything lies in `folder`."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._root, self._kept = str(root), folder / "kept"
        self._kept.mkdir(parents=True)
        self._log = plain_open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._count = 0
        self._lock = threading.Lock()

    def run(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], call: Callable[[], Any]) -> Any:
        """Makes the call `os.<name>`, and notes what it did."""
        with self._lock:
            entry = self._look(name, args, kwargs)
            outcome = call()
            if entry is not None:
                self._note(entry)
            return outcome

    def note_data(self, handle: int) -> None:
        """Bytes were written to the file behind `handle`."""
        if self._is_ours(_find_path(handle)):
            self._note({"op": "data", "ino": os.fstat(handle).st_ino})

    def note_new(self, path: str) -> None:
        """A file has got the name `path`."""
        if self._is_ours(path):
            self._note({"op": "new", **_name(path)})

    def _look(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        if name in ("fsync", "fdatasync"):
            path, status = _find_path(args[0]), os.fstat(args[0])
            found = {"op": "sync", "ino": status.st_ino, "size": status.st_size, "folder": stat.S_ISDIR(status.st_mode)}
            return found if self._is_ours(path) else None
        if name in ("ftruncate", "truncate"):
            return None
        last = _join(args[1] if name in ("rename", "replace", "link", "symlink") else args[0], kwargs.get("dir_fd"))
        if not self._is_ours(last):
            return None
        if name in ("rename", "replace"):
            source = _name(os.path.abspath(os.fspath(args[0])))  # noqa: PTH100 - links are not followed
            return {"op": "rename", **_name(last), "from": source, "kept": self._keep(last)}
        if name in ("unlink", "remove"):
            return {"op": "gone", **_name(last), "kept": self._keep(last)}
        if name == "rmdir":
            return {"op": "gone", **_name(last), "was": lstat(last).st_ino}
        return {"op": "new", **_name(last)}

    def _is_ours(self, path: str) -> bool:
        return path == self._root or (path.startswith(self._root + "/") and _NOT_OURS not in path)

    def _keep(self, path: str) -> str | None:
        try:
            is_folder = stat.S_ISDIR(lstat(path).st_mode)
        except FileNotFoundError:
            return None
        if is_folder:
            return None
        self._count += 1
        kept = self._kept / str(self._count)
        link(path, kept, follow_symlinks=False)
        return str(kept)

    def _note(self, entry: dict[str, Any]) -> None:
        plain_write(self._log, json.dumps(entry).encode() + b"\n")


def _find_path(handle: int) -> str:
    return readlink(f"/proc/self/fd/{handle}")  # noqa: PTH115 - `Path` may be wrapped


def _join(path: Any, folder: int | None) -> str:
    text = os.fspath(path)
    return os.path.abspath(text if folder is None else f"{_find_path(folder)}/{text}")  # noqa: PTH100


def _name(path: str) -> dict[str, Any]:
    folder, _, name = path.rpartition("/")
    return {"dir": os.stat(folder).st_ino, "name": name}  # noqa: PTH116 - `Path.stat` may be wrapped


def cut_power(root: Path, folder: Path, dice: random.Random | None) -> int:
    """Undoes below `root` what the log in `folder` says and no fsync has covered; returns how much that was.

    Args:
        root: the storage of a process that is gone.
        folder: what its DiskLog was given.
        dice: None: everything that is not durable is lost; else some of it.
    """
    names, bytes_ = _read_log(folder / "log")
    if dice is not None:
        names = names[dice.randint(0, len(names)) :]
    folders = {path.stat().st_ino: path for path in (root, *root.rglob("*")) if path.is_dir() and not path.is_symlink()}
    for entry in reversed(names):
        _undo(entry, folders)
    lost = {ino: size for ino, size in bytes_.items() if dice is None or dice.random() < 0.5}
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    hit = {path.stat().st_ino: path for path in files if path.stat().st_ino in lost}
    for ino, path in hit.items():
        _lose(path, lost[ino], zeros=dice is not None and dice.random() < 0.5)
    return len(names) + len(hit)


def _read_log(path: Path) -> tuple[list[dict[str, Any]], dict[int, int]]:
    """Names that are not durable, in order; and inode -> length that is, of files that have more."""
    names: list[dict[str, Any]] = []
    synced: dict[int, int] = {}
    dirty: set[int] = set()
    for entry in map(json.loads, path.read_text().splitlines()):
        match entry["op"]:
            case "data":
                dirty.add(entry["ino"])
            case "sync" if entry["folder"]:
                names = [one for one in names if one["dir"] != entry["ino"]]
            case "sync":
                dirty.discard(entry["ino"])
                synced[entry["ino"]] = entry["size"]
            case _:
                names.append(entry)
    return names, {ino: synced.get(ino, 0) for ino in dirty}


def _undo(entry: dict[str, Any], folders: dict[int, Path]) -> None:
    folder = folders.get(entry["dir"])
    if folder is None or not folder.is_dir():
        return  # it was lost with its own name
    path = folder / entry["name"]
    match entry["op"]:
        case "new":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        case "gone" if "was" in entry:
            path.mkdir(exist_ok=True)
            folders[entry["was"]] = path
        case "gone":
            _bring_back(entry, path)
        case "rename":
            home = folders.get(entry["from"]["dir"])
            if home is not None and home.is_dir() and path.exists():
                _move(path, home / entry["from"]["name"], folders)
            _bring_back(entry, path)


def _move(path: Path, back: Path, folders: dict[int, Path]) -> None:
    path.replace(back)
    for ino, known in list(folders.items()):
        if known == path or path in known.parents:
            folders[ino] = back / known.relative_to(path)


def _bring_back(entry: dict[str, Any], path: Path) -> None:
    if entry["kept"] is not None and not path.is_symlink() and not path.exists():
        link(entry["kept"], path, follow_symlinks=False)


def _lose(path: Path, durable_bytes: int, *, zeros: bool) -> None:
    size = path.stat().st_size
    mode = path.stat().st_mode
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.truncate(min(durable_bytes, size))
        if zeros:
            file.truncate(size)
    path.chmod(mode)
