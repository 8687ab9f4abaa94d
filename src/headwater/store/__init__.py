"""The run file: what a watched training run leaves on disk, and how it is read back."""

from headwater.store.writer import Gap, RunWriter

__all__ = ["Gap", "RunWriter"]
