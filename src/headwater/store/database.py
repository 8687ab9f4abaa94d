"""A read-only connection to a run file, whose failures are told in words."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headwater.errors import RecordError
from headwater.store.schema import check_identity, run_file

__all__ = ["Database"]

BUSY_SECONDS = 5.0  # that a writer's checkpoint is waited for (chosen by us)


class Database:
    """Reads a run file, also while another process writes it.

    Args:
        path: the run's folder, or its file.

    Raises:
        RecordError: there is no run, or the file is damaged, of another program, or of a newer headwater.
    """

    def __init__(self, path: str | Path) -> None:
        self.file = run_file(path)
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        if not self.file.exists():
            raise RecordError(
                f"there is no run at {path}: {self.file} does not exist; name the folder that was given as run="
            )
        if not self.file.is_file():
            raise RecordError(f"{self.file} is not a regular file")
        try:
            self._connection = self._connect()
        except sqlite3.Error as error:
            self.close()
            raise self._damaged(error) from error
        try:
            if not check_identity(self._connection, self.file):
                raise RecordError(f"{self.file} is empty: the run was ended before anything was written")
        except sqlite3.Error as error:
            self.close()
            raise self._damaged(error) from error
        except BaseException:
            self.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        place = self.file.resolve().as_uri()
        try:
            return _opened(f"{place}?mode=ro")
        except sqlite3.OperationalError:
            # In a folder that cannot be written the index of the write-ahead log cannot be made. Nobody writes there
            # either, so the file may be taken as it is; where a log was left behind, a copy of both is read.
            log = Path(f"{self.file}-wal")
            if not log.exists() or not log.stat().st_size:
                return _opened(f"{place}?mode=ro&immutable=1")
            self._copy = tempfile.TemporaryDirectory(prefix="headwater-run-")
            copy = Path(self._copy.name) / self.file.name
            shutil.copyfile(self.file, copy)
            shutil.copyfile(log, f"{copy}-wal")
            return _opened(f"{copy.as_uri()}?mode=ro")

    def rows(self, statement: str, values: Sequence[object] = ()) -> list[Any]:
        """All rows of a query.

        Args:
            statement: SQL.
            values: of its parameters.

        Returns:
            Tuples.

        Raises:
            RecordError: the file is damaged.
        """
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.ProgrammingError as error:
            raise RecordError(f"the run {self.file} was closed; open it again") from error
        except sqlite3.Error as error:
            raise self._damaged(error) from error

    def version(self) -> int:
        """A number that changes when somebody else has written."""
        return int(self.rows("PRAGMA data_version")[0][0])

    def json(self, text: str) -> Any:
        """A JSON value out of a column; RecordError when it is none."""
        try:
            return json.loads(text)
        except (ValueError, TypeError) as error:
            raise self._damaged(error) from error

    def close(self) -> None:
        """Close the file; nothing happens the second time."""
        if hasattr(self, "_connection"):
            self._connection.close()
        if self._copy is not None:
            self._copy.cleanup()
            self._copy = None

    def _damaged(self, error: Exception) -> RecordError:
        text = str(error)
        if "locked" in text or "busy" in text:
            return RecordError(f"{self.file} is locked by another program ({text}); try again")
        return RecordError(
            f"{self.file} is damaged or something else ({text}); what can be saved of it, "
            f"'sqlite3 {self.file.name} .recover' prints as SQL"
        )


def _opened(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=64
    )
    try:
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection
