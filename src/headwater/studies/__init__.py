"""Named studies and the vocabulary they are made of: data only; :mod:`headwater._studies` runs them."""

from headwater.studies.classics import CLASSICS, study
from headwater.studies.data import LOSSES, Data
from headwater.studies.initializations import INITIALIZATIONS, Initialization, initialization
from headwater.studies.network import Network, RawMatrices, Stack, build
from headwater.studies.study import Question, ShortcutGrid, Study, Variant

__all__ = [
    "CLASSICS",
    "INITIALIZATIONS",
    "LOSSES",
    "Data",
    "Initialization",
    "Network",
    "Question",
    "RawMatrices",
    "ShortcutGrid",
    "Stack",
    "Study",
    "Variant",
    "build",
    "initialization",
    "study",
]
