"""Every test of the room runs by compiled code and in plain torch."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from headwater.stats import kernels


@pytest.fixture(scope="module", params=["compiled", "plain torch"], autouse=True)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Which of the two; once per module, since hypothesis runs a test many times within a function's fixtures."""
    before = os.environ.pop("HEADWATER_KERNELS", None)
    os.environ["HEADWATER_KERNELS"] = "1" if request.param == "compiled" else "0"
    kernels.forget()
    if request.param == "compiled" and not kernels.status().in_use:
        pytest.skip(kernels.status().reason)
    yield request.param
    del os.environ["HEADWATER_KERNELS"]
    if before is not None:
        os.environ["HEADWATER_KERNELS"] = before
    kernels.forget()
