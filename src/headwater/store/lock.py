"""One writer per run: a lock that ends with the process that holds it."""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path

from headwater.errors import OutputError

__all__ = ["WriterLock"]

_held: dict[str, int] = {}  # real path of a lock file -> process that took it
_guard = threading.Lock()


class WriterLock:
    """The right to write one run, taken at once or refused.

    A record lock of the operating system on a file beside the database. It is gone with the process, however that
    ends, so a run that was killed can be resumed at once; a forked child (a data loader's worker) does not inherit it.
    Such locks do not tell two writers of one process apart; a table in memory does.

    Args:
        path: of the lock file; it is made, and removed on release.

    Raises:
        OutputError: another writer holds it, or the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._key = os.path.realpath(path)
        self._process = os.getpid()
        with _guard:
            if _held.get(self._key) == self._process:
                raise OutputError(
                    f"the run {path.parent} is already being written by this process; "
                    "close the first watch (detach) or choose another run name"
                )
            try:
                self._handle = self._open_locked()
            except BlockingIOError:
                raise OutputError(
                    f"the run {path.parent} is being written by {self._owner()}; stop it or choose another run name"
                ) from None
            except OSError as error:
                raise OutputError(
                    f"cannot write the run {path.parent}: {error.strerror or error}; "
                    "name a folder that exists or can be made, on a disk that supports file locks"
                ) from error
            _held[self._key] = self._process

    def _open_locked(self) -> int:
        while True:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock(handle)
                # Whoever held the lock before may have removed the file between our open and our lock.
                if _same_file(handle, self._path):
                    os.ftruncate(handle, 0)
                    os.write(handle, f"{self._process} {socket.gethostname()}\n".encode())
                    return handle
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)

    def _owner(self) -> str:
        try:
            process, host = self._path.read_text(encoding="utf-8").split()
        except (OSError, ValueError):
            return "another process"
        return f"process {process} on {host}"

    def release(self) -> None:
        """Give the right back; nothing happens the second time, or in a forked child."""
        with _guard:
            if self._process != os.getpid() or _held.get(self._key) != self._process or self._handle < 0:
                return
            del _held[self._key]
            if sys.platform != "win32":  # there an open file cannot be removed; an unlocked one is no obstacle
                self._path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = -1


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from error

else:
    import errno
    import fcntl

    def _lock(handle: int) -> None:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise BlockingIOError(*error.args) from error
            raise
