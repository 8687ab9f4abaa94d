"""What holds for every test: a fixed seed, one thread, and no silent skip where everything is installed.

Set ``HEADWATER_REQUIRE_ALL=1`` (``make check`` does) and a test that is skipped fails the run, unless its reason is on
the list below: a machine without a GPU cannot run the GPU tests, and the published figures outside the repository are
not shipped with it.
"""

from __future__ import annotations

import os
import re

import pytest
import torch

# Reasons, as regular expressions, that are accepted even when everything must run.
ALLOWED_SKIPS = (
    r"\bCUDA\b",
    r"\.\./shared",
)

_refused: list[str] = []


def _require_all() -> bool:
    return os.environ.get("HEADWATER_REQUIRE_ALL", "") not in ("", "0")


def is_allowed_skip(reason: str) -> bool:
    return any(re.search(pattern, reason) for pattern in ALLOWED_SKIPS)


def _note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not is_allowed_skip(reason):
        _refused.append(f"{report.nodeid}: {reason}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note_skip(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note_skip(report)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    # Only the process that prints the summary decides: under pytest-xdist the workers send it their reports.
    if _require_all() and _refused and not hasattr(session.config, "workerinput"):
        session.exitstatus = max(int(session.exitstatus), pytest.ExitCode.TESTS_FAILED)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _require_all() and _refused:
        terminalreporter.section("skipped, but HEADWATER_REQUIRE_ALL=1 allows no skip", red=True, bold=True)
        for line in sorted(set(_refused)):
            terminalreporter.line(line)


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)


torch.set_num_threads(1)
