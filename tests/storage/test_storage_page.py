"""docs/formats/storage.md names what the code puts on disk, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from tests.storage.storage_samples import add_version, list_tree

from edgeferry.app.device import CONFIG_FILE, INFERENCER_FOLDER, ROOT_FILE
from edgeferry.storage.files import FOLDER_NAME, TEMP_PREFIX, open_folder_lock
from edgeferry.storage.journal import open_journal
from edgeferry.storage.refs import HISTORY_FILE, PINS_FOLDER, REF_NAMES
from edgeferry.storage.repository import Repository
from edgeferry.storage.versions import IDENTITY_FILE, MANIFEST_FILE, OTHER_SIGN

PAGE = (Path(__file__).parent.parent.parent / "docs" / "formats" / "storage.md").read_text()
LAYOUT = PAGE.partition("## Layout")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| `([^`]+)` \|", LAYOUT, re.M)
WILD = {"2 hex": "[0-9a-f]{2}", "64 hex": "[0-9a-f]{64}"}


def make_pattern(row: str) -> re.Pattern[str]:
    parts = re.split(r"<([^>]+)>", row.rstrip("/"))
    return re.compile("".join(re.escape(one) if n % 2 == 0 else WILD.get(one, "[^/]+") for n, one in enumerate(parts)))


async def test_every_file_that_a_device_writes_has_a_row(repository: Repository) -> None:
    stored = add_version(repository, "1.0.0", {"model.onnx": b"weights", "labels.txt": b"cat\n"}, golden=(b"picture",))
    for name in REF_NAMES:
        repository.write_ref("detector", name, stored)
    repository.refs.pin("detector", stored.folder.name)
    with open_folder_lock(repository.root):
        async with open_journal(repository.journal_path):
            pass
    patterns = [make_pattern(row) for row in ROWS]
    files = [name for name in list_tree(repository.root) if (repository.root / name).is_file()]
    assert len(files) >= 11
    assert [name for name in files if not any(pattern.fullmatch(name) for pattern in patterns)] == []


def test_the_rows_carry_the_names_of_the_code(repository: Repository) -> None:
    version = "models/<name>/versions/<version>/"
    places = (repository.journal_path, repository.socket_path)
    assert {path.name for path in places} | {ROOT_FILE, CONFIG_FILE, "lock"} <= set(ROWS)
    assert {f"models/<name>/{name}" for name in (*REF_NAMES, HISTORY_FILE)} <= set(ROWS)
    assert f"models/<name>/{PINS_FOLDER}/<version>" in ROWS
    assert {version + MANIFEST_FILE, version + IDENTITY_FILE} <= set(ROWS)
    assert f"{repository.trust_folder.name}/" in ROWS
    assert f"{repository.partial_folder.name}/<64 hex>" in ROWS


def test_the_page_names_our_folders_and_signs() -> None:
    assert f"`<storage>/{FOLDER_NAME}/`" in LAYOUT
    assert f"`<storage>/{INFERENCER_FOLDER}/{FOLDER_NAME}/`" in LAYOUT
    assert f"`{TEMP_PREFIX}...`" in LAYOUT
    assert f"`<version>{OTHER_SIGN}<16 hex>/`" in LAYOUT
