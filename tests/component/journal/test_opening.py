"""What a daemon finds of the one before, and files that it must not touch."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from peewee import SqliteDatabase

from tests.component.journal.facts import (
    BEGIN,
    SECOND,
    collected,
    event,
    filled,
    lost,
    operation,
    revisions,
    rows,
    sighting,
    survey,
    uuid,
)
from vmagentd import messages
from vmagentd.errors import JournalUnusable, StateDirInUse
from vmagentd.journal import schema
from vmagentd.journal.reader import Lane
from vmagentd.journal.store import open_journal
from vmagentd.lifecycle.steps import end, step
from vmagentd.model import (
    OperationId,
    OperationOutcome,
    OperationPhase,
    Revision,
    VmState,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from peewee import Model

    from tests.component.journal.conftest import Open
    from vmagentd.journal.store import Journal

MODELS = [
    schema.MetaRow,
    schema.TransitionRow,
    schema.VmRow,
    schema.OperationRow,
    schema.JoinedRow,
    schema.BlindRow,
    schema.AuditRow,
]

# Sorted in memory, 300,000 times take 16 MiB. In a process of its own: the limit stays.
WITH_LITTLE_MEMORY = f"""
import sqlite3, sys
from pathlib import Path
from vmagentd.journal.schema import open_for_writing
sqlite3.connect(":memory:").execute("PRAGMA hard_heap_limit = {10 << 20}")
open_for_writing(Path(sys.argv[1])).close()
"""


class TestRestart:
    async def test_it_is_the_same_journal(self, opened: Open) -> None:
        async with opened() as journal:
            await filled(journal, 20)
            before = (journal.id, journal.head, journal.oldest, dict(journal.vms))
            secret = journal.secret
            history = await collected(journal, 0, 20)
        async with opened() as journal:
            assert (journal.id, journal.head, journal.oldest, dict(journal.vms)) == before
            assert journal.secret == secret
            assert await collected(journal, 0, 20) == history
            await journal.append(event(21))
            assert journal.head == 21

    async def test_another_file_is_another_journal(self, tmp_path: Path) -> None:
        ids = set()
        for name in ("a", "b"):
            async with open_journal(tmp_path / name, fatal=raise_it) as journal:
                ids.add(journal.id)
                assert (journal.head, journal.oldest) == (0, 1)
        assert len(ids) == 2

    async def test_vms_are_found_as_before(self, opened: Open) -> None:
        async with opened() as journal:
            await journal.append(survey(sighting(1), sighting(2)))
            await journal.append(survey(sighting(1)))
        async with opened() as journal:
            one, two = journal.find("vm1"), journal.find(uuid(2).upper())
            assert one is not None
            assert two is not None
            assert (one.state, two.state) == (VmState.RUNNING, VmState.GONE)
            assert journal.find("vm2") == two  # nobody else bears the name
            assert journal.find("vm3") is None

    async def test_what_was_under_way_is_left_open(self, opened: Open) -> None:
        done = end(
            operation(1),
            OperationPhase.SUCCEEDED,
            time=BEGIN + SECOND,
            outcome=OperationOutcome.DONE,
        )
        second = step(operation(2, vm=2), OperationPhase.SIGNALLED, time=BEGIN + SECOND)
        async with opened() as journal:
            await journal.append(survey(sighting(1), sighting(2), sighting(3)))
            for fact in (operation(1), done, operation(3, vm=3), operation(2, vm=2), second):
                await journal.append(fact)
        async with opened() as journal:
            assert list(journal.left_open) == [second, operation(3, vm=3)]
            assert journal.vms[uuid(2)].active_operation_id == "op-2"
            assert await journal.operation(OperationId("op-1")) == done
            assert await journal.operation(OperationId("op-9")) is None
            # a start or stop that is under way goes on explaining what comes
            await journal.append(event(1, vm=2))

    async def test_a_request_is_found_by_who_asked_and_its_id(self, opened: Open) -> None:
        asked = operation(1, request_id="r")
        async with opened() as journal:
            await journal.append(survey(sighting(1)))
            await journal.append(asked)
        async with opened() as journal:
            assert await journal.request("tester", "r") == (asked, asked.parameters)
            assert await journal.request("tester", "s") is None
            assert await journal.request("somebody", "r") is None

    async def test_a_revision_is_never_given_away_again(
        self, opened: Open, state_dir: Path
    ) -> None:
        async with opened() as journal:
            await filled(journal, 5)
        rows(state_dir, "DELETE FROM 'transition' WHERE revision > 2")
        async with opened() as journal:
            assert (journal.head, journal.oldest) == (5, 1)
            await journal.append(event(6))
            assert revisions(await journal.page(Revision(5))) == [6]
        rows(state_dir, "DELETE FROM 'transition'")
        async with opened() as journal:
            assert (journal.head, journal.oldest) == (6, 7)
            await journal.append(event(7))
            assert (journal.head, (await journal.page(Revision(6)))[0].revision) == (7, 7)


class TestBlindness:
    @pytest.fixture
    async def journal(self, state_dir: Path) -> AsyncIterator[Journal]:
        """A journal that was opened right before the first fact."""
        async with open_journal(state_dir, fatal=raise_it, now=lambda: BEGIN) as journal:
            yield journal

    async def test_a_new_journal_has_never_been_connected(self, journal: Journal) -> None:
        assert not journal.link.connected
        assert journal.link.cause == "not connected yet"
        assert journal.link.blind_since is not None
        assert journal.link.last_survey_time is None

    async def test_a_survey_ends_it_and_a_loss_begins_it(self, journal: Journal) -> None:
        seen = sighting()
        await journal.append(survey(seen))
        link = journal.link
        assert (link.connected, link.last_survey_time) == (True, BEGIN + 100 * SECOND)
        changed = journal.changed
        await journal.append(lost(cause="libvirtd ended"))
        assert changed.is_set()
        link = journal.link
        assert (link.connected, link.cause) == (False, "libvirtd ended")
        assert link.blind_since == BEGIN + 60 * SECOND
        assert link.last_survey_time == BEGIN + 100 * SECOND
        assert journal.vms[uuid(1)].state is VmState.RUNNING  # as it was
        now, before = await journal.blind_intervals()
        assert (now.end_time, now.cause) == (None, "libvirtd ended")
        assert before.end_time == BEGIN + 100 * SECOND

    async def test_the_first_loss_tells_since_when_and_the_last_one_why(
        self, journal: Journal
    ) -> None:
        await journal.append(survey(sighting()))
        await journal.append(lost(cause="first"))
        since = journal.link.blind_since
        await journal.append(lost(cause="second"))
        assert (journal.link.blind_since, journal.link.cause) == (since, "second")
        newest, _ = await journal.blind_intervals()
        assert newest.cause == "first, then: second"
        await journal.append(lost(cause="third"))
        await journal.append(survey(sighting(), link=2))
        newest, _ = await journal.blind_intervals()
        assert newest.cause == "first, then: third"

    async def test_a_survey_through_the_lost_link_does_not_end_it(self, journal: Journal) -> None:
        await journal.append(survey(sighting(), link=1))
        await journal.append(lost(link=1))
        connected = []
        for link in (1, 2):
            await journal.append(survey(sighting(), link=link))
            connected.append(journal.link.connected)
        assert connected == [False, True]
        assert all(interval.end_time for interval in await journal.blind_intervals())

    async def test_a_stop_of_the_daemon_is_a_blind_interval(self, opened: Open) -> None:
        async with opened() as journal:
            await journal.append(survey(sighting()))
        async with opened() as journal:
            assert journal.link.cause == "vmagentd was stopped"
            assert journal.link.last_survey_time == BEGIN + 100 * SECOND
            await journal.append(survey(sighting()))
            stopped, first = await journal.blind_intervals()
            assert (stopped.cause, first.cause) == ("vmagentd was stopped", "not connected yet")
            assert stopped.end_time is not None

    async def test_a_daemon_that_cannot_connect_says_so_of_the_time_that_goes_on(
        self, opened: Open
    ) -> None:
        async with opened() as journal:
            await journal.append(survey(sighting()))
        for before in ("vmagentd was stopped", "no such socket"):
            async with opened() as journal:
                assert journal.link.cause == before
                await journal.append(lost(link=0, cause="no such socket"))
                assert journal.link.cause == "no such socket"
                now, _ = await journal.blind_intervals()
                assert now.cause == "vmagentd was stopped, then: no such socket"
                assert now.begin_time == journal.link.blind_since
        async with opened() as journal:
            await journal.append(survey(sighting()))
            ended, _ = await journal.blind_intervals()
            assert ended.cause == "vmagentd was stopped, then: no such socket"

    async def test_the_next_daemon_knows_what_was_in_the_way_last(
        self, opened: Open, state_dir: Path
    ) -> None:
        async with opened() as journal:
            await journal.append(survey(sighting()))
            await journal.append(lost(cause="first"))
            await journal.append(lost(cause="second"))
            files = contents(state_dir)
        restore(state_dir, files)  # as a kill would have left it
        async with opened() as journal:
            assert journal.link.cause == "second"
            now, _ = await journal.blind_intervals()
            assert now.cause == "first, then: second"

    async def test_a_kill_is_one_since_the_last_thing_that_was_certain(
        self, opened: Open, state_dir: Path
    ) -> None:
        async with opened() as journal:
            await journal.append(survey(sighting()))
            await journal.append(event(201))
            files = contents(state_dir)
        restore(state_dir, files)  # as a kill would have left it
        async with opened() as journal:
            assert journal.head == 2
            assert journal.link.cause == "vmagentd was not running"
            assert journal.link.blind_since == BEGIN + 201 * SECOND

    async def test_intervals_are_found_by_the_time_they_overlap(self, journal: Journal) -> None:
        await journal.append(survey(sighting()))  # at 100 s
        await journal.append(lost())  # at 60 s
        assert len(await journal.blind_intervals(since=BEGIN + 1000 * SECOND)) == 1
        assert len(await journal.blind_intervals(until=BEGIN)) == 1
        assert len(await journal.blind_intervals(until=BEGIN - SECOND)) == 0
        assert len(await journal.blind_intervals(limit=1)) == 1


class TestUnusable:
    async def test_a_directory_that_is_held(self, opened: Open, state_dir: Path) -> None:
        async with opened():
            with pytest.raises(StateDirInUse, match="another vmagentd holds it"):
                async with open_journal(state_dir, fatal=raise_it):
                    pass
            # another process is no different
            assert "StateDirInUse" in what_another_process_says(state_dir)
        async with opened() as journal:
            assert journal.head == 0

    async def test_a_directory_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StateDirInUse):
            async with open_journal(tmp_path / "file", fatal=raise_it):
                pass

    async def test_a_newer_version_is_left_alone(self, opened: Open, state_dir: Path) -> None:
        async with opened() as journal:
            await filled(journal, 3)
        newer = len(schema.MIGRATIONS) + 1
        rows(state_dir, f"PRAGMA user_version = {newer}")
        before = (state_dir / "journal.db").read_bytes()
        with pytest.raises(JournalUnusable, match=f"version {newer}.*install the newer"):
            async with opened():
                pass
        assert (state_dir / "journal.db").read_bytes() == before
        rows(state_dir, f"PRAGMA user_version = {newer - 1}")
        async with opened() as journal:  # nothing was held back either
            assert journal.head == 3

    @pytest.mark.parametrize("content", [b"no database" * 1000, os.urandom(8192)])
    async def test_garbage_is_set_aside(
        self, opened: Open, state_dir: Path, content: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        restore(state_dir, {"journal.db": content})
        async with opened() as journal:
            assert journal.head == 0
        aside = set_aside(state_dir)
        assert aside.read_bytes() == content
        (loud,) = (record for record in caplog.records if record.levelname == "ERROR")
        assert str(aside) in loud.getMessage()

    async def test_an_empty_file_is_told_of(
        self, opened: Open, state_dir: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        restore(state_dir, {"journal.db": b""})
        async with opened() as journal:
            assert journal.head == 0
        (loud,) = (record for record in caplog.records if record.levelname == "ERROR")
        assert "is empty" in loud.getMessage()
        assert vars(loud)["MESSAGE_ID"] == messages.JOURNAL_SET_ASIDE
        caplog.clear()
        async with opened():
            pass
        assert not [record for record in caplog.records if record.levelname == "ERROR"]
        assert "corrupt" not in " ".join(contents(state_dir))  # there was nothing to keep

    async def test_the_log_of_an_emptied_file_is_kept(
        self, opened: Open, state_dir: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """SQLite deletes it."""
        async with opened() as journal:
            await filled(journal, 3)
            files = contents(state_dir)
        restore(state_dir, files | {"journal.db": b""})
        async with opened() as journal:
            assert journal.head == 0
        kept = [
            content
            for name, content in contents(state_dir).items()
            if "corrupt" in name and name.endswith("-wal")
        ]
        assert kept == [files["journal.db-wal"]] != [b""]
        (loud,) = (record for record in caplog.records if record.levelname == "ERROR")
        assert "was emptied" in loud.getMessage()
        assert vars(loud)["MESSAGE_ID"] == messages.JOURNAL_SET_ASIDE

    async def test_a_directory_in_its_place(self, opened: Open, state_dir: Path) -> None:
        (state_dir / "journal.db").mkdir(parents=True)
        with pytest.raises(JournalUnusable, match="it is no file; move it away") as caught:
            async with opened():
                pass
        assert "room" not in str(caught.value)

    @pytest.mark.parametrize("damage", ["torn", "overwritten"])
    async def test_damage_behind_a_good_first_page(
        self, opened: Open, state_dir: Path, damage: str
    ) -> None:
        async with opened() as journal:
            await filled(journal, 200)
        file = state_dir / "journal.db"
        content = file.read_bytes()
        keep = 4096
        rest = b"" if damage == "torn" else b"\xa5" * (len(content) - keep)
        file.write_bytes(content[:keep] + rest)
        async with opened() as journal:
            assert (journal.head, journal.vms) == (0, {})
        aside = set_aside(state_dir)
        assert aside.stat().st_size == keep + len(rest)

    async def test_a_record_that_makes_no_sense(self, opened: Open, state_dir: Path) -> None:
        async with opened() as journal:
            await filled(journal, 1)
        rows(state_dir, "UPDATE vm SET record = '{}'")
        with pytest.raises(JournalUnusable, match="move it away"):
            async with opened():
                pass

    async def test_a_version_without_its_tables(self, opened: Open, state_dir: Path) -> None:
        restore(state_dir, {})
        rows(state_dir, f"PRAGMA user_version = {len(schema.MIGRATIONS)}")
        with pytest.raises(JournalUnusable):
            async with opened():
                pass


class TestSchema:
    def test_a_journal_larger_than_memory_is_migrated(self, state_dir: Path) -> None:
        restore(state_dir, {})
        path = state_dir / "journal.db"
        db = SqliteDatabase(str(path), pragmas=schema.WRITER_PRAGMAS)
        for migration in schema.MIGRATIONS[:3]:
            migration(db)
        schema.sql(
            db,
            """WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT 300000)
            INSERT INTO "transition" SELECT n, 'vm', 'STATE', 'RUNNING', n << 30, '{}' FROM n""",
        )
        db.pragma("user_version", 3)
        db.close()
        done = subprocess.run(
            [sys.executable, "-c", WITH_LITTLE_MEMORY, path],
            cwd=Path(__file__).parents[3],
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert rows(state_dir, "PRAGMA user_version") == [(len(schema.MIGRATIONS),)]

    async def test_the_live_connections_are_as_laid_down(self, journal: Journal) -> None:
        names = sorted(schema.WRITER_PRAGMAS.keys() | schema.READER_PRAGMAS.keys())

        def pragmas(db: Any) -> dict[str, Any]:  # noqa: ANN401 - peewee's pragma() has no types
            return {name: db.pragma(name) for name in names}

        common = {"busy_timeout": 5000, "foreign_keys": 1, "temp_store": 2}
        writing = pragmas(journal._writer._db)
        reading = await journal._reader.read(Lane.LISTS, pragmas)
        log_limit = writing.pop("journal_size_limit")
        assert log_limit == 16 << 20
        assert writing == common | {"journal_mode": "wal", "synchronous": 2, "query_only": 0}
        assert reading["query_only"] == 1
        assert reading["journal_mode"] == "wal"

    async def test_a_reader_cannot_write(self, journal: Journal) -> None:
        with pytest.raises(Exception, match=r"readonly|read-only"):
            await journal._reader.read(Lane.LISTS, schema.sql, "DELETE FROM meta")

    @pytest.mark.parametrize("model", MODELS)
    async def test_models_are_the_tables(
        self, opened: Open, state_dir: Path, model: type[Model]
    ) -> None:
        async with opened():
            pass
        meta: Any = model._meta
        keys = getattr(meta.primary_key, "field_names", ())
        declared = {
            name: (not field.null, field.primary_key or name in keys, kind_of(field))
            for name, field in meta.columns.items()
        }
        with closing(sqlite3.connect(state_dir / "journal.db")) as db:
            info = db.execute(f"PRAGMA table_info('{meta.table_name}')").fetchall()
        stored = {
            name: (bool(notnull) or bool(primary), bool(primary), kind)
            for _, name, kind, notnull, _, primary in info
        }
        assert declared == stored

    async def test_every_table_has_a_model_and_is_strict(
        self, opened: Open, state_dir: Path
    ) -> None:
        async with opened():
            pass
        tables = dict(rows(state_dir, "SELECT name, sql FROM sqlite_master WHERE type = 'table'"))
        tables.pop("sqlite_sequence")
        assert set(tables) == {model._meta.table_name for model in MODELS}
        assert all(re.search(r"\bSTRICT\b", text) for text in tables.values())
        assert rows(state_dir, "PRAGMA user_version") == [(len(schema.MIGRATIONS),)]
        assert rows(state_dir, "PRAGMA integrity_check") == [("ok",)]


def contents(state_dir: Path) -> dict[str, bytes]:
    shared_memory = "journal.db-shm"  # what the kernel forgets when the machine ends
    files = (path for path in state_dir.iterdir() if path.name != shared_memory)
    return {path.name: path.read_bytes() for path in files}


def restore(state_dir: Path, files: dict[str, bytes]) -> None:
    state_dir.mkdir(exist_ok=True)
    for name, content in files.items():
        (state_dir / name).write_bytes(content)


def set_aside(state_dir: Path) -> Path:
    """Return where the damaged journal is kept."""
    (aside,) = state_dir.glob("journal.db.corrupt-*")
    return aside


def what_another_process_says(state_dir: Path) -> str:
    """Let another process open the journal, and return what is said to its error output."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.component.journal.scribbler", str(state_dir)],
        cwd=Path(__file__).parents[3],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    return done.stderr


def kind_of(field: Any) -> str:  # noqa: ANN401 - peewee's fields have no types
    return "TEXT" if field.field_type == "TEXT" else "INTEGER"


def raise_it(error: BaseException) -> None:
    raise error
