"""The recording side of a run file: records in, transactions out, and never an error into training."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import sqlite3
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from headwater.errors import OutputError, RecordError
from headwater.records.finding import Finding
from headwater.records.json_codec import encode
from headwater.records.step import RunEvent, StepRecord
from headwater.store.insertion import Insertion
from headwater.store.lock import WriterLock
from headwater.store.schema import FILE_NAME, check_identity, create

__all__ = ["Gap", "RunWriter"]

_LOG = logging.getLogger("headwater.store")

FLUSH_SECONDS = 1.0  # at most this much is lost by kill -9 while records keep coming (chosen by us)
FLUSH_ROWS = 20_000  # rows of numbers that wait at most, about 8 MB (chosen by us)
KEPT_ROWS = 100_000  # rows that are kept while the disk refuses them, about 40 MB (chosen by us)
RETRY_SECONDS = 5.0  # between two attempts while the disk refuses (chosen by us)
BUSY_SECONDS = 1.0  # that another program's lock on the file is waited for (chosen by us)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """What could not be written.

    Attributes:
        records: number of step records that are lost.
        first_step: of the first one; None when only events or findings are lost.
        last_step: of the last one.
        reason: what the file system or the database said.
    """

    records: int
    first_step: int | None
    last_step: int | None
    reason: str

    def __str__(self) -> str:
        many = "1 record" if self.records == 1 else f"{self.records} records"
        steps = "" if self.first_step is None else f" (steps {self.first_step} to {self.last_step})"
        return f"{many}{steps} could not be written: {self.reason}"


_Item = StepRecord | RunEvent | tuple[Finding, str, bool] | dict[str, Any]
# What a value that is no number, text or JSON raises: trying again would not help.
_UNSTORABLE = (
    sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.IntegrityError, TypeError, ValueError, OverflowError,
)  # fmt: skip


class RunWriter:
    """Appends to a run file.

    Records are collected and written in one transaction at most once a second (sooner when 20,000 rows wait), so what
    ``kill -9`` can lose is what came after the last flush. The journal is a write-ahead log: others read while this
    writes, and a half-written transaction is undone by whoever opens the file next. ``synchronous`` is ``NORMAL``: a
    power cut may take the last transactions but leaves a whole file.

    When the disk is full, read-only or the file locked by another program, training goes on: one warning is given,
    records are kept up to 100,000 rows and then dropped, writing is tried again every five seconds, and once it works
    what was lost is written as an event ``gap``.

    Use it from one thread at a time.

    Args:
        path: the run's folder; made when missing. A run that is there already is continued in a new session.
        metadata: what describes the run: plain JSON values; later sessions replace entries of the same name.
        on_trouble: called with one sentence when writing first fails; by default a warning of the logger
            ``headwater.store``.

    Raises:
        OutputError: the folder cannot be written, or another writer is at work on the run.
        RecordError: there is a file of something else, or of a newer headwater, under the run's name.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with RunWriter(folder + "/first", {"model_type": "MLP"}) as writer:
        ...     writer.write(StepRecord(step=0, time=0.0, elapsed_seconds=0.0, loss=2.5))
        >>> writer.healthy, writer.gaps
        (True, ())
    """

    def __init__(
        self,
        path: str | Path,
        metadata: Mapping[str, Any] | None = None,
        *,
        on_trouble: Callable[[str], None] | None = None,
    ) -> None:
        self._path = Path(path).absolute()  # a program that changes its folder later goes on writing here
        self._file = self._path / FILE_NAME
        self._on_trouble = on_trouble or _LOG.warning
        self._waiting: list[tuple[_Item, int]] = []
        self._waiting_rows = 0
        self._last_flush = -math.inf
        self._retry_at = -math.inf
        self._trouble: str | None = None
        self._warned = False
        self._lost = _Lost()
        self._gaps: list[Gap] = []
        self._closed = False
        self._process = os.getpid()
        described = encode(dict(metadata or {}))
        _make_folder(self._path)
        self._lock = WriterLock(self._path / "run.lock")
        self._release = weakref.finalize(self, self._lock.release)
        try:
            self._connection = self._open()
            self._insertion = self._begin_session(described)
        except BaseException:
            self._release()
            raise
        self._identity = self._file.stat()

    # ---------------------------------------------------------------- what it says about itself

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._path

    @property
    def session(self) -> int:
        """Number of this session, from 1."""
        return self._insertion.session

    @property
    def healthy(self) -> bool:
        """Whether the last attempt to write succeeded."""
        return self._trouble is None

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """What was lost since this session began; empty when nothing was."""
        return (*self._gaps, self._lost.gap()) if self._lost.anything else tuple(self._gaps)

    # ---------------------------------------------------------------- writing

    def write(self, record: StepRecord) -> None:
        """Append one step."""
        self._append(record, sum(len(block.rows) for block in record.blocks))

    def write_event(self, event: RunEvent) -> None:
        """Append one event."""
        self._append(event, 1)

    def write_finding(self, finding: Finding, group: str = "", *, grown: bool = False) -> None:
        """Append one finding of the group's steps.

        Args:
            finding: it.
            group: model/optimizer pair it is about.
            grown: it takes the place of the one with its code, defect and step, where this session has one.
        """
        self._append((finding, group, grown), 1)

    def update_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Add or replace entries of the run's metadata, such as the cost so far."""
        self._append(encode(dict(metadata)), 1)

    def flush(self) -> None:
        """Write what waits. Cheap when nothing does, so that an idle thread may call it every second."""
        if not self._waiting or self._closed or os.getpid() != self._process:
            return
        now = time.monotonic()
        if now >= self._retry_at:
            self._last_flush = now
            self._try()
        self._drop_surplus()

    def close(self) -> None:
        """Write what waits, end the session and give the run free; nothing happens the second time."""
        if self._closed or os.getpid() != self._process:  # a forked child holds a copy of something not its own
            return
        self._retry_at = -math.inf
        self.flush()
        self._lose(0, len(self._waiting), self._trouble or "")
        self._closed = True
        try:
            self._connection.execute("UPDATE sessions SET ended = ? WHERE id = ?", (time.time(), self.session))
        except sqlite3.Error as error:
            self._trouble = str(error)
            self._warn(self._trouble)
        finally:
            self._connection.close()
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ---------------------------------------------------------------- opening

    def _open(self) -> sqlite3.Connection:
        if self._file.exists() and not self._file.is_file():
            raise OutputError(f"cannot write {self._file}: it is not a regular file; choose another run name")
        try:
            # Made in the training thread, used by the recorder thread afterwards.
            connection = sqlite3.connect(
                self._file, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=64
            )
        except sqlite3.Error as error:
            raise _unwritable(self._file, error) from error
        try:
            if not check_identity(connection, self._file):
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("BEGIN IMMEDIATE")
                create(connection)
                connection.execute("COMMIT")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
        except sqlite3.Error as error:
            connection.close()
            raise _unwritable(self._file, error) from error
        except BaseException:
            connection.close()
            raise
        return connection

    def _begin_session(self, metadata: Mapping[str, Any]) -> Insertion:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            cursor = self._connection.execute(
                "INSERT INTO sessions(begun, host, process, metadata) VALUES (?, ?, ?, ?)",
                (time.time(), socket.gethostname(), self._process, json.dumps(metadata, allow_nan=False)),
            )
            assert cursor.lastrowid is not None
            insertion = Insertion(self._connection, cursor.lastrowid)
            insertion.metadata(metadata)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._connection.close()
            raise _unwritable(self._file, error) from error
        return insertion

    # ---------------------------------------------------------------- the queue

    def _append(self, what: _Item, rows: int) -> None:
        if self._closed or os.getpid() != self._process:
            return
        self._waiting.append((what, rows))
        self._waiting_rows += rows
        if self._waiting_rows >= FLUSH_ROWS or time.monotonic() - self._last_flush >= FLUSH_SECONDS:
            self.flush()

    def _try(self) -> None:
        """One transaction with everything that waits; an item that cannot be stored at all is left out."""
        while self._waiting:
            position = 0
            try:
                self._check_file()
                self._connection.execute("BEGIN IMMEDIATE")
                for position, (what, _) in enumerate(self._waiting):  # noqa: B007 (the handler below reads it)
                    self._put(what)
                if self._lost.anything:
                    self._insertion.event(self._lost.event())
                self._connection.execute("COMMIT")
            except _UNSTORABLE as error:
                self._roll_back()
                self._lose(position, position + 1, f"{type(error).__name__}: {error}")
                self._warn(self._lost.reason)
            except (sqlite3.Error, OSError) as error:
                self._roll_back()
                self._trouble = _reason(error)
                self._retry_at = time.monotonic() + RETRY_SECONDS
                self._warn(self._trouble)
                return
            else:
                if self._lost.anything:
                    self._gaps.append(self._lost.gap())
                    self._lost = _Lost()
                self._trouble = None
                self._retry_at = -math.inf
                self._waiting.clear()
                self._waiting_rows = 0

    def _put(self, what: _Item) -> None:
        if isinstance(what, StepRecord):
            self._insertion.step(what)
        elif isinstance(what, RunEvent):
            self._insertion.event(what)
        elif isinstance(what, tuple):
            self._insertion.finding(*what)
        else:
            self._insertion.metadata(what)

    def _check_file(self) -> None:
        """OSError when the file was removed or replaced: what is written would go nowhere."""
        if not os.path.samestat(self._file.stat(), self._identity):
            raise FileNotFoundError(f"{self._file} was replaced by another file")

    def _roll_back(self) -> None:
        self._insertion.forget()
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error as error:  # the next BEGIN fails as well, and says so
            _LOG.debug("could not roll back: %s", error)

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            self._on_trouble(
                f"the run {self._path} could not be written ({reason}); training goes on, and what is lost is recorded "
                "as a gap as soon as the file can be written again"
            )

    def _drop_surplus(self) -> None:
        dropped, rows = 0, self._waiting_rows
        while rows > KEPT_ROWS:
            rows -= self._waiting[dropped][1]
            dropped += 1
        if dropped:
            self._lose(0, dropped, self._trouble or "")

    def _lose(self, first: int, end: int, reason: str) -> None:
        for what, rows in self._waiting[first:end]:
            self._lost.add(what, reason)
            self._waiting_rows -= rows
        del self._waiting[first:end]


class _Lost:
    """Counts what could not be written since the last time that something was."""

    def __init__(self) -> None:
        self.anything = False
        self.reason = ""
        self._records = 0
        self._steps: tuple[int, int] | None = None

    def add(self, what: _Item, reason: str) -> None:
        self.anything, self.reason = True, reason
        if isinstance(what, StepRecord):
            self._records += 1
            first, last = self._steps or (what.step, what.step)
            self._steps = min(first, what.step), max(last, what.step)

    def gap(self) -> Gap:
        first, last = self._steps or (None, None)
        return Gap(records=self._records, first_step=first, last_step=last, reason=self.reason)

    def event(self) -> RunEvent:
        gap = self.gap()
        return RunEvent(kind="gap", step=gap.first_step, time=time.time(), message=f"{gap}.")


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = "it is a file, and a run is a folder" if path.is_file() else (error.strerror or str(error))
        raise OutputError(f"cannot write the run {path}: {what}; choose another run name") from error


def _reason(error: Exception) -> str:
    return str(error.strerror or error) if isinstance(error, OSError) else str(error)


def _unwritable(file: Path, error: sqlite3.Error) -> OutputError | RecordError:
    text = str(error)
    if "not a database" in text or "malformed" in text:
        return RecordError(f"{file} is damaged or something else ({text}); move it away or choose another run name")
    return OutputError(f"cannot write {file}: {text}; name a folder that is writable, on a disk that has room")
