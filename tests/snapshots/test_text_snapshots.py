"""Text reports as readable files beside this test.

``HEADWATER_UPDATE_SNAPSHOTS=1 pytest tests/snapshots`` rewrites them; read the difference before you commit it. Numbers
are tested elsewhere: these files show how a report looks.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests import profiles

from headwater import reports
from headwater.records import Profile

CASES: dict[str, tuple[Profile, int, bool]] = {
    "deep-sigmoid-100": (profiles.deep_sigmoid(20), 100, False),
    "deep-sigmoid-80-ascii": (profiles.deep_sigmoid(5), 80, True),
    "thousand-layers-100": (profiles.deep_sigmoid(500, -0.01), 100, False),
    "transformer-100": (profiles.transformer(12), 100, False),
    "recurrent-100": (profiles.recurrent(), 100, False),
    "troubled-100": (profiles.troubled(), 100, False),
    "troubled-60": (profiles.troubled(), 60, False),
    "draws-100": (profiles.with_draws(), 100, False),
}


@pytest.mark.parametrize("name", CASES)
def test_a_text_report_looks_as_it_did(name: str) -> None:
    profile, width, ascii_only = CASES[name]
    text = reports.to_text(profile, width=width, ascii_only=ascii_only) + "\n"
    path = Path(__file__).with_name(f"{name}.txt")
    if os.environ.get("HEADWATER_UPDATE_SNAPSHOTS"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
