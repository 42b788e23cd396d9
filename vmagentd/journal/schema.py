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
from vmagentd.model import Operation, OperationFailure, Parameters, Transition, Vm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from sqlite3 import Connection, Cursor

TRANSITION: Final = TypeAdapter(Transition)
VM: Final = TypeAdapter(Vm)
OPERATION: Final = TypeAdapter(Operation)
PARAMETERS: Final[TypeAdapter[Parameters]] = TypeAdapter(Parameters)
FAILURE: Final = TypeAdapter(OperationFailure)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_column(time: datetime) -> int:
    """Return *time* as a column holds it."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def from_column(microseconds: int) -> datetime:
    """Return the time that a column holds."""
    return _EPOCH + timedelta(microseconds=microseconds)


def sql(db: SqliteDatabase, statement: str, values: Mapping[str, object] | None = None) -> Cursor:
    """Run one statement as it stands, with the values that it names, and return its cursor."""
    cursor: Cursor = db.execute_sql(statement, values)  # type: ignore[no-untyped-call] # no stubs
    return cursor


def insert(
    db: SqliteDatabase,
    row: type[Model],
    values: Mapping[str, object],
    *,
    instead: str = "",
) -> None:
    """Insert a row; *instead* says what is done if it is there: an ON CONFLICT clause.

    For what is written at every step: peewee composes the same statement anew each time, which
    takes ten times as long as to carry it out (measured).
    """
    columns, places = ", ".join(values), ", ".join(f":{name}" for name in values)
    table = row._meta.table_name  # noqa: SLF001 - peewee's API
    sql(db, f'INSERT INTO "{table}" ({columns}) VALUES ({places}) {instead}', values)  # noqa: S608


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
    verb = TextField()
    phase = TextField()
    outcome = TextField(null=True)
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


class AuditRow(Model):
    """One audit record. Its sequence comes from AUTOINCREMENT's table, as revisions do."""

    sequence = AutoField()
    kind = TextField()
    time = BigIntegerField()
    end_time = BigIntegerField(null=True)
    actor = TextField()
    peer = TextField()
    fingerprint = TextField(null=True)
    method = TextField()
    vm = TextField(null=True)
    vm_name = TextField()
    operation = TextField(null=True)
    # the refusal's own id: later ones like it are counted in this row
    refusal = TextField(null=True)
    phase = TextField(null=True)
    failure = TextField(null=True)
    count = BigIntegerField(default=1)

    class Meta:
        table_name = "audit"


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


def _add_audit(db: SqliteDatabase) -> None:
    """1 → 2."""
    for statement in (
        """CREATE TABLE audit (
            sequence INTEGER PRIMARY KEY AUTOINCREMENT,
            kind TEXT NOT NULL, time INTEGER NOT NULL, end_time INTEGER,
            actor TEXT NOT NULL, peer TEXT NOT NULL, fingerprint TEXT, method TEXT NOT NULL,
            vm TEXT, vm_name TEXT NOT NULL, operation TEXT, refusal TEXT,
            phase TEXT, failure TEXT, count INTEGER NOT NULL) STRICT""",
        "CREATE INDEX audit_kind ON audit (kind)",
        "CREATE INDEX audit_time ON audit (time)",
        "CREATE INDEX audit_actor ON audit (actor)",
        "CREATE INDEX audit_vm ON audit (vm)",
        "CREATE INDEX audit_operation ON audit (operation) WHERE operation IS NOT NULL",
        "CREATE INDEX audit_refusal ON audit (refusal) WHERE refusal IS NOT NULL",
    ):
        sql(db, statement)


def _operations_by_what_they_are(db: SqliteDatabase) -> None:
    """2 → 3: operations are found by verb, phase, outcome and actor, newest first."""
    for statement in (
        "ALTER TABLE operation RENAME TO old",
        """CREATE TABLE operation (
            id TEXT PRIMARY KEY, vm TEXT NOT NULL, actor TEXT NOT NULL, request_id TEXT,
            verb TEXT NOT NULL, phase TEXT NOT NULL, outcome TEXT,
            accept_time INTEGER NOT NULL, end_time INTEGER, record TEXT NOT NULL)
            STRICT, WITHOUT ROWID""",
        # Records without a verb are of a time of two; of these only a Stop has a mode.
        """INSERT INTO operation SELECT
            id, vm, actor, request_id,
            coalesce(
                record ->> '$.parameters.verb',
                iif(record ->> '$.parameters.mode' IS NULL, 'START', 'STOP')),
            record ->> '$.phase', record ->> '$.outcome', accept_time, end_time, record
            FROM old""",
        "DROP TABLE old",
        "CREATE UNIQUE INDEX operation_request ON operation (actor, request_id)",
        "CREATE INDEX operation_open ON operation (id) WHERE end_time IS NULL",
        # each ends with the primary key, by itself
        "CREATE INDEX operation_accept_time ON operation (accept_time)",
        "CREATE INDEX operation_vm ON operation (vm, accept_time)",
        "CREATE INDEX operation_actor ON operation (actor, accept_time)",
        "CREATE INDEX operation_verb ON operation (verb, accept_time)",
        "CREATE INDEX operation_phase ON operation (phase, accept_time)",
        "CREATE INDEX operation_outcome ON operation (outcome, accept_time)",
    ):
        sql(db, statement)


def _times_in_blocks(db: SqliteDatabase) -> None:
    """3 → 4: which times there are in each block of revisions is known without reading it."""
    sql(db, 'CREATE INDEX transition_block ON "transition" (revision / 4096, time)')


MIGRATIONS: Final[tuple[Callable[[SqliteDatabase], None], ...]] = (
    _create,
    _add_audit,
    _operations_by_what_they_are,
    _times_in_blocks,
)

# synchronous=FULL: in WAL mode NORMAL would lose the last commits at a power loss.
# A busy_timeout, since an administrator may read the file with sqlite3 while we write.
_COMMON = {"busy_timeout": 5000, "foreign_keys": 1, "temp_store": "memory"}
# A reader that stays long makes the log grow; after it the log is cut to this again.
LOG_BYTES: Final = 16 << 20
WRITER_PRAGMAS: Final = {
    **_COMMON,
    "journal_mode": "wal",
    "synchronous": "full",
    "journal_size_limit": LOG_BYTES,
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
    # It may sort the whole journal, for which memory may be too small: then in /var/tmp.
    db.pragma("temp_store", "file")
    for number, migration in enumerate(MIGRATIONS[version:], start=version + 1):
        with writing(db):
            migration(db)
            db.pragma("user_version", number)
    db.pragma("temp_store", _COMMON["temp_store"])
