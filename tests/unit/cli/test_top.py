"""``headwater top``: one frame, a live view in a real terminal, its end and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests import runs

from headwater.cli import main
from headwater.records import RunEvent
from headwater.records.run_summary import RunSummary
from headwater.store import RunWriter

pty = pytest.importorskip("pty", reason="no pseudo-terminal on this system")


def top(*words: object) -> Result:
    return CliRunner().invoke(main, ["top", *map(str, words)])


@pytest.fixture(scope="module")
def spiking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_run(tmp_path_factory.mktemp("runs") / "spiking", runs.spiking())


@pytest.mark.parametrize("words", [("--once",), ()])
def test_one_frame_is_printed_where_there_is_no_terminal(spiking: Path, words: tuple[str, ...]) -> None:
    result = top(spiking, *words)
    assert result.exit_code == 0
    assert "HW703 gradient spike at layers.3.weight from step 100" in result.stdout
    assert "\x1b" not in result.stdout


def test_json_is_the_summary(spiking: Path) -> None:
    assert RunSummary.from_json(top(spiking, "--json").stdout).name == "spiking"


def test_nothing_observed_and_no_run(tmp_path: Path) -> None:
    runs.write_run(tmp_path / "empty", runs.nothing())
    assert top(tmp_path / "empty", "--once").exit_code == 3
    assert top(tmp_path / "nothing").exit_code == 2


def _in_a_terminal(folder: Path, then: Callable[[subprocess.Popen[bytes], bytes], None]) -> tuple[int, str]:
    """Run ``headwater top`` in a pseudo-terminal of 24 × 60; ``then`` is called after every piece of output."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "headwater", "top", str(folder), "--interval", "0.1"],
        stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    os.set_blocking(ours, False)
    limit = time.monotonic() + 120
    try:
        while process.poll() is None and time.monotonic() < limit:
            seen += _read(ours)
            then(process, seen)
            time.sleep(0.05)
        seen += _read(ours)
        return process.wait(timeout=5), seen.decode(errors="replace")
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 20)
    except (BlockingIOError, OSError):  # nothing new, or the other side has closed
        return b""


def test_the_view_follows_a_run_and_leaves_when_it_ends(tmp_path: Path) -> None:
    run = runs.healthy()
    with RunWriter(tmp_path / "live", run.metadata) as writer:
        left = list(run.steps)
        writer.write(run.record(left.pop(0)))
        writer.flush()

        def train(process: subprocess.Popen[bytes], seen: bytes) -> None:
            if b"step 0" not in seen:
                return
            if left:
                writer.write(run.record(left.pop(0)))
                if not left:
                    writer.write_event(RunEvent(kind="detached", step=200, time=runs.START, message="The end."))
                writer.flush()

        code, shown = _in_a_terminal(tmp_path / "live", train)
    assert code == 0, shown
    assert "step 200" in shown
    assert "The run has ended." in shown


def test_ctrl_c_leaves_quietly(tmp_path: Path) -> None:
    runs.write_run(tmp_path / "open", runs.healthy())
    sent = []

    def interrupt(process: subprocess.Popen[bytes], seen: bytes) -> None:
        if b"Ctrl-C leaves" in seen and not sent:
            sent.append(True)
            process.send_signal(signal.SIGINT)

    code, shown = _in_a_terminal(tmp_path / "open", interrupt)
    assert code == 0
    assert sent
    assert "Traceback" not in shown
    assert shown.rstrip().endswith("\x1b[?25h")  # the cursor is visible again
