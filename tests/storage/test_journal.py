"""The journal is on the disk when a call returns, and a device without a readable one serves on."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from edgeferry.errors import StorageBusy, StorageFailed
from edgeferry.storage.journal import OutboxMessage, open_journal


async def test_records_are_kept_replaced_and_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with open_journal(path) as journal:
        await journal.save_record("a", model="detector", state="RESOLVING", body=b"1")
        await journal.save_record("b", model="default", state="WAITING", body=b"2")
        await journal.save_record("a", model="detector", state="DOWNLOADING", body=b"3")
    async with open_journal(path) as journal:
        assert sorted(await journal.load_records()) == [("a", b"3"), ("b", b"2")]
        await journal.delete_record("a")
        await journal.delete_record("never-there")
        assert await journal.load_records() == [("b", b"2")]
        assert journal.damage is None
    assert path.stat().st_mode & 0o777 == 0o600


async def test_what_returned_survives_a_power_cut_by_sqlites_own_settings(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "journal.db") as journal:
        found = [
            journal._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
        ]
    assert found == ["wal", 2]


async def test_a_day_of_the_ledger_that_went_below_nothing_begins_at_nothing(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "journal.db") as journal:
        await journal.add_bytes("2026-11-23", "http", -5)
    async with open_journal(tmp_path / "journal.db") as journal:
        assert await journal.get_ledger() == {"2026-11-23": {"http": 0}}


async def test_the_ledger_adds_up_by_day_and_kind(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "journal.db") as journal:
        await asyncio.gather(*(journal.add_bytes("2026-11-23", "http", 10) for _ in range(20)))
        await journal.add_bytes("2026-11-23", "mqtt", 5)
        await journal.add_bytes("2026-11-24", "http", 1 << 40)
        assert await journal.get_ledger() == {"2026-11-23": {"http": 200, "mqtt": 5}, "2026-11-24": {"http": 1 << 40}}


async def test_messages_wait_in_order_until_they_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with open_journal(path) as journal:
        await journal.put_message("z", output="DLModelOutput", body=b"1")
        await journal.put_message("a", output="DLModelOutput", body=b"2")
        await journal.put_message("z", output="other", body=b"again")
    async with open_journal(path) as journal:
        assert await journal.list_messages() == [
            OutboxMessage("z", "DLModelOutput", b"1"),
            OutboxMessage("a", "DLModelOutput", b"2"),
        ]
        await journal.drop_message("z")
        assert [message.mid for message in await journal.list_messages()] == ["a"]


async def test_values_are_kept_by_key(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "journal.db") as journal:
        assert await journal.get_value("boot") is None
        await journal.set_value("boot", b"1")
        await journal.set_value("boot", b"2")
        assert await journal.get_value("boot") == b"2"


@pytest.mark.parametrize("content", [b"garbage" * 2000, b"SQLite format 3\0" + b"\xff" * 5000])
async def test_a_journal_that_is_no_database_is_moved_aside_and_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(content)
    async with open_journal(path) as journal:
        assert journal.damage is not None and "journal.db.damaged" in journal.damage.message
        await journal.save_record("a", model="m", state="s", body=b"1")
    assert (tmp_path / "journal.db.damaged").read_bytes() == content
    async with open_journal(path) as journal:
        assert journal.damage is None
        assert await journal.load_records() == [("a", b"1")]


async def test_a_damaged_page_is_found_at_start(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with open_journal(path) as journal:
        for number in range(200):
            await journal.save_record(str(number), model="m", state="s", body=os.urandom(200))
    with path.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(b"\xff" * 4096 * 4)
    async with open_journal(path) as journal:
        assert journal.damage is not None
        assert await journal.load_records() == []


async def test_a_journal_of_a_newer_release_is_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    async with open_journal(path) as journal:
        assert journal.damage is not None and "schema 99" in journal.damage.message


async def test_a_journal_that_another_process_has_open_is_busy_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeferry.storage.journal._BUSY_TIMEOUT_S", 0.05)
    path = tmp_path / "journal.db"
    async with open_journal(path) as journal:
        await journal.set_value("a", b"1")
        with pytest.raises(StorageBusy):
            async with open_journal(path):
                raise AssertionError("opened twice")
        assert await journal.get_value("a") == b"1"
    async with open_journal(path) as journal:
        assert await journal.get_value("a") == b"1"
    assert [found.name for found in tmp_path.iterdir()] == ["journal.db"]


async def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed):
        async with open_journal(tmp_path / "none" / "journal.db"):
            raise AssertionError("opened")


_WRITER = """
import asyncio, pathlib, sys
from edgeferry.storage.journal import open_journal
async def main():
    async with open_journal(pathlib.Path(sys.argv[1])) as journal:
        for number in range(1 << 20):
            await journal.save_record("key", model="m", state="s", body=str(number).encode())
            print(number, flush=True)
asyncio.run(main())
"""


async def test_after_a_kill_the_last_record_that_was_said_is_there(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    said = [int(writer.stdout.readline()) for _ in range(30)][-1]
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    async with open_journal(path) as journal:
        assert journal.damage is None
        assert int((await journal.load_records())[0][1]) >= said


async def test_a_row_that_has_rotted_is_forgotten_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with open_journal(path) as journal:
        for key in ("a", "b"):
            await journal.save_record(key, model="m", state="s", body=b"sha256:%s" % (key.encode() * 64))
            await journal.put_message(key, output="o", body=b"paths of %s" % (key.encode() * 8))
            await journal.set_value(key, b"wanted %s" % (key.encode() * 8))
        for kind in ("http", "mqtt"):
            await journal.add_bytes("2026-11-26", kind, 7)
    data = path.read_bytes()
    for right, wrong in (
        (b"b" * 64, b"b" * 63 + b"c"),
        (b"of bbbb", b"of bbcb"),
        (b"wanted bbb", b"wanted bbc"),
        (b"26mqtt", b"26m\xfftt"),
    ):
        assert right in data
        data = data.replace(right, wrong)
    path.write_bytes(data)
    async with open_journal(path) as journal:
        assert journal.damage is None
        assert [key for key, _ in await journal.load_records()] == ["a"]
        assert [one.mid for one in await journal.list_messages()] == ["a"]
        assert await journal.get_ledger() == {"2026-11-26": {"http": 7}}
        assert (await journal.get_value("a"), await journal.get_value("b")) == (b"wanted aaaaaaaa", None)


@pytest.mark.parametrize("seed", range(25))
async def test_any_bit_of_a_journal_may_rot_and_what_it_tells_is_true(tmp_path: Path, seed: int) -> None:
    path, dice = tmp_path / "journal.db", random.Random(seed)
    async with open_journal(path) as journal:
        for number in range(8):
            await journal.save_record(f"key {number}", model="m", state="s", body=b"%d" % number * 200)
            await journal.set_value(f"key {number}", b"%d" % number * 200)
            await journal.add_bytes(f"2026-11-0{number + 1}", "http", number)
    data = bytearray(path.read_bytes())
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)
    async with open_journal(path) as journal:
        for key, body in await journal.load_records():
            assert body == key.removeprefix("key ").encode() * 200
        for number in range(8):
            assert await journal.get_value(f"key {number}") in (None, b"%d" % number * 200)
        assert len(await journal.get_ledger()) <= 8
        await journal.save_record("new", model="m", state="s", body=b"1")
