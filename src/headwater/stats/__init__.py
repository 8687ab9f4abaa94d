"""Tensors to statistics that add up: no hooks, no autograd, no random numbers."""

from headwater.stats.equal_rows import duplicate_row_count, zero_column_count, zero_columns, zero_row_count
from headwater.stats.histogram import log2_histogram
from headwater.stats.moments import moment_row, moment_rows, statistics_from_rows, summarize, summarize_many
from headwater.stats.signal import (
    between_sample_fraction,
    between_sample_fraction_on_device,
    position_cosine,
    position_cosine_on_device,
)
from headwater.stats.tables import MomentPlan, moment_table, norm_table
from headwater.stats.units import alive_units

__all__ = [
    "MomentPlan",
    "alive_units",
    "between_sample_fraction",
    "between_sample_fraction_on_device",
    "duplicate_row_count",
    "log2_histogram",
    "moment_row",
    "moment_rows",
    "moment_table",
    "norm_table",
    "position_cosine",
    "position_cosine_on_device",
    "statistics_from_rows",
    "summarize",
    "summarize_many",
    "zero_column_count",
    "zero_columns",
    "zero_row_count",
]
