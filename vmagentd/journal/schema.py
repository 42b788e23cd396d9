"""Tables of the journal's file, how it is opened, and how its records are written down.

What is searched for has a column; the whole of a VM, a transition or an operation is one JSON
text beside it, so that an older record stays readable when a field is added. Times in columns
are whole microseconds since 1970, UTC.

A migration is a numbered function from one `user_version` to the next; none is ever changed
once it was released.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from peewee import (
    AutoField,
    BigIntegerField,
    CompositeKey,
    DatabaseError,
    Model,
    SqliteDatabase,
    TextField,
)
from pydantic import TypeAdapter

from vmagentd.errors import JournalUnusable
from vmagentd.model import Operation, StartParameters, StopParameters, Transition, Vm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from sqlite3 import Connection, Cursor

TRANSITION: Final = TypeAdapter(Transition)
VM: Final = TypeAdapter(Vm)
OPERATION: Final = TypeAdapter(Operation)
PARAMETERS: Final[TypeAdapter[StartParameters | StopParameters]] = TypeAdapter(
    StartParameters | StopParameters
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_column(time: datetime) -> int:
    """Return *time* as a column holds it."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def from_column(microseconds: int) -> datetime:
    """Return the time that a column holds."""
    return _EPOCH + timedelta(microseconds=microseconds)


def sql(db: SqliteDatabase, statement: str) -> Cursor:
    """Run one statement as it stands, and return its cursor."""
    cursor: Cursor = db.execute_sql(statement)  # type: ignore[no-untyped-call] # not in its stubs
    return cursor


class MetaRow(Model):
    """A fact about the journal itself."""

    key = TextField(primary_key=True)
    value = TextField()

    class Meta:
        table_name = "meta"


class TransitionRow(Model):
    """One transition. Its revision comes from AUTOINCREMENT's table: SQLite never reuses it."""

    revision = BigIntegerField(primary_key=True)
    vm = TextField()
    kind = TextField()
    state = TextField()
    time = BigIntegerField()
    record = TextField()

    class Meta:
        table_name = "transition"


class VmRow(Model):
    """One VM as its newest transition left it."""

    uuid = TextField(primary_key=True)
    name = TextField()
    state = TextField()
    revision = BigIntegerField()
    record = TextField()

    class Meta:
        table_name = "vm"


class OperationRow(Model):
    """One operation as its newest step left it; `end_time` is null while it is under way."""

    id = TextField(primary_key=True)
    vm = TextField()
    actor = TextField()
    request_id = TextField(null=True)
    accept_time = BigIntegerField()
    end_time = BigIntegerField(null=True)
    record = TextField()

    class Meta:
        table_name = "operation"


class JoinedRow(Model):
    """A request that joined an operation; whose own request is in that operation's row."""

    actor = TextField()
    request_id = TextField()
    operation = TextField()
    parameters = TextField()

    class Meta:
        table_name = "joined"
        primary_key = CompositeKey("actor", "request_id")


class BlindRow(Model):
    """A time during which libvirt could not be asked; `end_time` is null while it lasts."""

    id = AutoField()
    begin_time = BigIntegerField()
    end_time = BigIntegerField(null=True)
    cause = TextField()

    class Meta:
        table_name = "blind"


def _create(db: SqliteDatabase) -> None:
    """0 → 1."""
    for statement in (
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID",
        # AUTOINCREMENT: without it SQLite gives the number of a deleted newest row away again
        """CREATE TABLE transition (
            revision INTEGER PRIMARY KEY AUTOINCREMENT,
            vm TEXT NOT NULL, kind TEXT NOT NULL, state TEXT NOT NULL,
            time INTEGER NOT NULL, record TEXT NOT NULL) STRICT""",
        "CREATE INDEX transition_vm ON transition (vm, revision)",
        "CREATE INDEX transition_time ON transition (time)",
        """CREATE TABLE vm (
            uuid TEXT PRIMARY KEY, name TEXT NOT NULL, state TEXT NOT NULL,
            revision INTEGER NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID""",
        """CREATE TABLE operation (
            id TEXT PRIMARY KEY, vm TEXT NOT NULL, actor TEXT NOT NULL, request_id TEXT,
            accept_time INTEGER NOT NULL, end_time INTEGER, record TEXT NOT NULL)
            STRICT, WITHOUT ROWID""",
        "CREATE UNIQUE INDEX operation_request ON operation (actor, request_id)",
        """CREATE TABLE joined (
            actor TEXT NOT NULL, request_id TEXT NOT NULL, operation TEXT NOT NULL,
            parameters TEXT NOT NULL, PRIMARY KEY (actor, request_id)) STRICT, WITHOUT ROWID""",
        "CREATE INDEX joined_operation ON joined (operation)",
        "CREATE INDEX operation_vm ON operation (vm, accept_time)",
        "CREATE INDEX operation_accept_time ON operation (accept_time)",
        "CREATE INDEX operation_open ON operation (id) WHERE end_time IS NULL",
        """CREATE TABLE blind (
            id INTEGER PRIMARY KEY AUTOINCREMENT, begin_time INTEGER NOT NULL,
            end_time INTEGER, cause TEXT NOT NULL) STRICT""",
    ):
        sql(db, statement)


MIGRATIONS: Final[tuple[Callable[[SqliteDatabase], None], ...]] = (_create,)

# synchronous=FULL: in WAL mode NORMAL would lose the last commits at a power loss.
# A busy_timeout, since an administrator may read the file with sqlite3 while we write.
_COMMON = {"busy_timeout": 5000, "foreign_keys": 1, "temp_store": "memory"}
# A reader that stays long makes the log grow; after it the log is cut to this again.
_LOG_BYTES: Final = 16 << 20
WRITER_PRAGMAS: Final = {
    **_COMMON,
    "journal_mode": "wal",
    "synchronous": "full",
    "journal_size_limit": _LOG_BYTES,
}
READER_PRAGMAS: Final = {**_COMMON, "query_only": 1}


def open_for_writing(path: Path) -> SqliteDatabase:
    """Return the writing connection to the journal at *path*, made or migrated where needed.

    To be used by one thread alone, any one.

    Raises:
        JournalUnusable: the file is of a newer version.
        DatabaseError: what SQLite has against it.
    """
    # one thread at a time uses it, but the one that opens it is not the one that writes
    db = SqliteDatabase(
        str(path), pragmas=WRITER_PRAGMAS, thread_safe=False, check_same_thread=False
    )
    try:
        db.connect()
        _migrate(db, path)
    except BaseException:
        with suppress(DatabaseError):  # of two errors the first tells more
            db.close()
        raise
    return db


@contextmanager
def writing(db: SqliteDatabase) -> Iterator[None]:
    """Make one transaction of what is done inside.

    Not peewee's: if a commit fails because of the disk, SQLite may have rolled back by itself,
    and peewee then raises that there is nothing to roll back, and not what has happened.
    """
    sql(db, "BEGIN IMMEDIATE")
    try:
        yield
        sql(db, "COMMIT")
    except BaseException:
        if _connection(db).in_transaction:
            sql(db, "ROLLBACK")
        raise


def _connection(db: SqliteDatabase) -> Connection:
    connection: Connection = db.connection()  # type: ignore[no-untyped-call] # not in its stubs
    return connection


def _migrate(db: SqliteDatabase, path: Path) -> None:
    version = db.pragma("user_version")
    if version > len(MIGRATIONS):
        raise JournalUnusable(
            str(path),
            f"it is of version {version}, this vmagentd knows versions up to {len(MIGRATIONS)}; "
            "install the newer vmagentd again",
        )
    for number, migration in enumerate(MIGRATIONS[version:], start=version + 1):
        with db.atomic("EXCLUSIVE"):
            migration(db)
            db.pragma("user_version", number)
