"""headwater: does the gradient reach the first layer, and if not, where is it lost, why, and what repairs it?"""

from headwater._measure import measure
from headwater.errors import HeadwaterError
from headwater.records import Profile, Statistics

__version__ = "0.1.0"

__all__ = ["HeadwaterError", "Profile", "Statistics", "measure"]
