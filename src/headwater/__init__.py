"""headwater: does the gradient reach the first layer, and if not, where is it lost, why, and what repairs it?"""

from headwater._diagnose import diagnose
from headwater._explain_init import explain_init
from headwater._measure import measure
from headwater.errors import HeadwaterError
from headwater.records import Diagnosis, Finding, Profile, Severity, Statistics, Verdict
from headwater.theory import critical_init, gain

__version__ = "0.1.0"

__all__ = [
    "Diagnosis",
    "Finding",
    "HeadwaterError",
    "Profile",
    "Severity",
    "Statistics",
    "Verdict",
    "critical_init",
    "diagnose",
    "explain_init",
    "gain",
    "measure",
]
