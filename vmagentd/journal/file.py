"""The journal's file: opened and checked, set aside if it is damaged, watched while in use."""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from vmagentd import messages
from vmagentd.errors import JournalUnusable, StateDirInUse
from vmagentd.journal import pruning, rows
from vmagentd.journal.disk import DATABASE_ERRORS, Damaged, Fault, cause, fault
from vmagentd.journal.fold import Fold
from vmagentd.journal.given_up import load_given_up
from vmagentd.journal.schema import open_for_writing, sql, writing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    from peewee import SqliteDatabase

    from vmagentd.journal.disk import Ballast
    from vmagentd.model import JournalId, Operation, Revision, Vm

log = logging.getLogger(__name__)

# SQLite's files beside the database. The database goes last when they are moved: a log left
# beside a new one would be taken for its own.
_BESIDE: Final = ("-wal", "-shm")
# Checked whole at each start: they are as large as there are VMs. The transitions are not: a
# check of a million took 18 s from a cold disk (1.3 s from memory). Damage there is found by
# whoever comes across it.
_CHECKED: Final = ("meta", "vm", "operation", "blind")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The open file, and what it holds of what the daemon has in memory."""

    db: SqliteDatabase
    id: JournalId
    secret: bytes
    oldest: Revision
    fold: Fold
    vms: Sequence[Vm]
    # under way when the last daemon ended, oldest first
    open_operations: Sequence[Operation]


@contextmanager
def held(state_dir: Path) -> Iterator[None]:
    """Hold *state_dir* against other daemons; the kernel lets go of it when the process ends.

    Raises:
        StateDirInUse: another daemon holds it, or it cannot be used.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateDirInUse(str(state_dir), error.strerror or str(error)) from error
    with closing(os.fdopen(lock)):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateDirInUse(str(state_dir), "another vmagentd holds it") from error
        yield


def open_file(path: Path, ballast: Ballast, *, now: datetime) -> Kept:
    """Open the journal at *path*; made where there is none, set aside where it is damaged.

    Raises:
        JournalUnusable: the disk does not let us, or it is none of this version's.
    """
    damaged = False
    if path.exists() and not path.is_file():
        raise JournalUnusable(str(path), "it is no file; move it away to begin a new one")
    how = "emptied" if _empty(path) else "removed" if not path.exists() else ""
    if how and _beside(path, "-wal").exists():
        log.error(
            "journal %s was %s; a part of it is left in %s",
            path,
            how,
            _aside(path, now, f"it was {how} but for its log"),
            extra={"MESSAGE_ID": messages.JOURNAL_SET_ASIDE},
        )
    while True:
        try:
            return _open(path, now=now)
        except DATABASE_ERRORS as error:
            match fault(error):
                case Fault.DAMAGE if not damaged:
                    damaged = True
                    log.error(  # noqa: TRY400 - the sentence says it all
                        "journal %s is damaged: %s; it is kept as %s, and a new one begins: what "
                        "happened before is only in there, watchers start afresh",
                        path,
                        cause(error),
                        _aside(path, now),
                        extra={"MESSAGE_ID": messages.JOURNAL_SET_ASIDE},
                    )
                case Fault.ROOM if ballast.release(path, error):
                    pass
                case Fault.ROOM | Fault.DISK:
                    why = f"{cause(error)}; make room, or make its disk writable"
                    raise JournalUnusable(str(path), why) from error
                case _:
                    why = f"{cause(error)}; move it away to begin a new one"
                    raise JournalUnusable(str(path), why) from error


def set_aside(path: Path, error: Exception, *, now: datetime) -> JournalUnusable:
    """Move a journal away in which *error* was met; return what ends the daemon."""
    try:
        aside = _aside(path, now)
    except JournalUnusable as unmoved:
        return unmoved
    log.error(
        "journal %s was found damaged while in use: %s; it is kept as %s",
        path,
        cause(error),
        aside,
        extra={"MESSAGE_ID": messages.JOURNAL_SET_ASIDE},
    )
    return JournalUnusable(
        str(path),
        f"found damaged while in use: {cause(error)}; it is kept as {aside}, and a restart "
        "begins a new one",
    )


class InUse:
    """The file as it was opened. From any thread."""

    def __init__(self, path: Path) -> None:
        """Remember the files at *path*; call it after a first commit, when all are there.

        Raises:
            OSError: the disk does not let us look at them.
        """
        self._path = path
        self._files = [(file, self._identity(file)) for file in _all(path)]

    def check(self) -> None:
        """Make sure that what is written here is what a restart will find.

        Raises:
            JournalUnusable: one of the files was removed or replaced.
        """
        for file, identity in self._files:
            try:
                found = self._identity(file)
            except OSError:
                continue  # what the disk has, SQLite says: it may pass
            if found != identity:
                raise JournalUnusable(
                    str(self._path),
                    f"{file.name} was removed or replaced while in use, so nothing more is "
                    "written; a restart goes on with what is there",
                )

    def _identity(self, file: Path) -> tuple[int, int] | None:
        try:
            status = os.stat(file)  # noqa: PTH116 - at each commit: half the cost of Path.stat
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_dev, status.st_ino


def _open(path: Path, *, now: datetime) -> Kept:
    emptied = _empty(path)
    db = open_for_writing(path)
    try:
        _check(db)
        with writing(db):
            new = rows.read_meta(db, "journal_id") is None
            journal_id, secret = rows.journal_id(db), rows.secret(db)
            pruning.forget_gone_vms(db)
            head, oldest = rows.head_and_oldest(db)
            link = rows.load_link(db, now=now)
            boot_id = rows.read_meta(db, rows.BOOT_ID)
            rows.write_link(db, link)
            vms, operations = rows.load_vms(db), rows.load_open_operations(db)
            given_up = load_given_up(db, now=now)
    except ValidationError as error:
        db.close()
        why = f"this version cannot read a record: {error}; move it away to begin a new one"
        raise JournalUnusable(str(path), why) from error
    except BaseException:
        with suppress(*DATABASE_ERRORS):
            db.close()
        raise
    if emptied:
        # Not moved away: nothing is in it, and a full disk would have one more at each restart.
        log.error(
            "journal %s is empty: began a new one, %s; what happened before is lost, watchers "
            "start afresh",
            path,
            journal_id,
            extra={"MESSAGE_ID": messages.JOURNAL_SET_ASIDE},
        )
    elif new:
        log.info("journal %s: began a new one, %s", path, journal_id)
    return Kept(
        db=db,
        id=journal_id,
        secret=secret,
        oldest=oldest,
        fold=Fold(
            head=head,
            link=link,
            boot_id=boot_id,
            vms=vms,
            operations=operations,
            given_up=given_up,
        ),
        vms=vms,
        open_operations=operations,
    )


def _check(db: SqliteDatabase) -> None:
    for table in _CHECKED:
        (found, *_), *_ = sql(db, f"PRAGMA quick_check({table})")
        if found != "ok":
            raise Damaged(found)


def _aside(path: Path, now: datetime, found: str = "it is damaged") -> Path:
    """Move all files of the journal away, and return where they are. Deletes nothing.

    Args:
        path: the database.
        now: when it was found so.
        found: how it was found.

    Raises:
        JournalUnusable: the disk does not let us.
    """
    name = f"{path.name}.corrupt-{now:%Y-%m-%dT%H:%M:%SZ}"
    aside, number = path.with_name(name), 1
    try:
        while any(file.exists() for file in _all(aside)):
            aside, number = path.with_name(f"{name}.{number}"), number + 1
        for old, new in zip(_all(path), _all(aside), strict=True):
            with suppress(FileNotFoundError):
                old.rename(new)
    except OSError as error:
        why = f"{found}, and cannot be moved away: {error.strerror}; make its disk writable"
        raise JournalUnusable(str(path), why) from error
    return aside


def _empty(path: Path) -> bool:
    """Return whether it is there, and nothing is in it: SQLite deletes its log then."""
    try:
        return path.stat().st_size == 0
    except OSError:
        return False


def _all(path: Path) -> list[Path]:
    return [*(_beside(path, suffix) for suffix in _BESIDE), path]


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
