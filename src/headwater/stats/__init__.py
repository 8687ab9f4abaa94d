"""Tensors to additive statistics: no hooks, no autograd, no random numbers."""

from headwater.stats.moments import moment_rows, moments, statistics_from_rows, summarize, summarize_many

__all__ = ["moment_rows", "moments", "statistics_from_rows", "summarize", "summarize_many"]
