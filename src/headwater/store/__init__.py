"""The run file: what a watched training run leaves on disk, and how it is read back."""

from headwater.store.logbook import Session
from headwater.store.reader import Run, open_run
from headwater.store.writer import Gap, RunWriter

__all__ = ["Gap", "Run", "RunWriter", "Session", "open_run"]
