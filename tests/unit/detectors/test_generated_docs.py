"""docs/detectors.md is made from the detectors, and says so when it is not."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from headwater.detectors import DEFAULT_DETECTORS
from headwater.detectors.over_time import DEFAULT_ALERTS

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "generate_detector_docs", ROOT / "scripts" / "generate_detector_docs.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_in_the_repository_is_up_to_date(script: ModuleType) -> None:
    assert script.run(["--check"]) == 0, "run python scripts/generate_detector_docs.py and commit"


def test_a_stale_page_fails_the_check_and_is_left_alone(script: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "detectors.md"
    assert script.run(["--check"], page) == 1
    assert not page.exists()
    assert script.run([], page) == 0
    assert script.run(["--check"], page) == 0
    page.write_text(page.read_text(encoding="utf-8") + "by hand", encoding="utf-8")
    assert script.run(["--check"], page) == 1


def test_every_link_in_the_table_leads_to_a_section(script: ModuleType) -> None:
    text = script.page()
    # The anchor that Markdown makes of a heading: lower case, spaces to hyphens.
    anchors = {heading.lower().replace(" ", "-") for heading in re.findall(r"^## (.+)$", text, flags=re.MULTILINE)}
    links = re.findall(r"\]\(#([\w-]+)\)", text)
    assert len(links) == len(DEFAULT_DETECTORS) + len(DEFAULT_ALERTS)
    assert set(links) <= anchors
