"""A run file outlives what happens to training jobs: kills, full disks, read-only folders, two writers at once."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests.unit.store.synthetic import step

from headwater.errors import OutputError
from headwater.store import RunWriter, open_run

ROOT = Path(__file__).parents[2]

# What every child starts with: a writer of the run named on the command line, and a step of 100 tensors.
PRELUDE = """
import os, random, resource, sys, time
from headwater.errors import HeadwaterError
from headwater.records import STATISTICS_COLUMNS, Block, StepRecord, WatchedTensor
from headwater.store import RunWriter, open_run

TENSORS = tuple(WatchedTensor(kind="parameter", name=f"p{n}.weight", order=n, shape=(4,)) for n in range(100))

def record(number):
    row = [4.0, 0.0, 0.0, 0.0, 0.0, 2.0 + number, 3.0, 1.0, 2.0, 1.0, 0.5]
    block = Block(quantity="gradient", phase="pre_clip", tensors=TENSORS, columns=STATISTICS_COLUMNS, rows=[row] * 100)
    return StepRecord(step=number, time=time.time(), elapsed_seconds=float(number), loss=1.0, blocks=(block,))

def say(*what):
    print(*what, flush=True)
"""


@contextmanager
def child(program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def finished(program: str, *arguments: object) -> list[str]:
    """The lines that a child said; its error fails the test."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + program, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    said = process.stdout.readline().strip()
    if not said:
        assert process.stderr is not None
        pytest.fail(f"the child ended early: {process.stderr.read()}")
    return said


def check_whole(run: Path) -> None:
    with closing(sqlite3.connect(run / "run.sqlite")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        # Every step that is there is there with all of its 100 rows.
        counts = connection.execute(
            """SELECT s.step, count(x.id) FROM steps s JOIN blocks b ON b.step_id = s.id
            LEFT JOIN statistics x ON x.id > b.id << 20 AND x.id < (b.id + 1) << 20 GROUP BY s.id"""
        ).fetchall()
    assert {count for _, count in counts} <= {100}


WRITE_UNTIL_KILLED = """
first = int(sys.argv[2])
writer = RunWriter(sys.argv[1])
dice = random.Random(first)
for number in range(first, 10**9):
    writer.write(record(number))
    if dice.random() < 0.2:
        writer.flush()
        say(number)
"""


def killed_at_random(run: Path, first: int, dice: random.Random) -> int:
    """Lets a child write from step ``first`` on, kills it, and returns the last step it said was flushed."""
    with child(WRITE_UNTIL_KILLED, run, first) as process:
        last = int(line(process))
        time.sleep(dice.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        assert process.stdout is not None
        said = process.stdout.read().split("\n")[:-1]  # the last line may be cut
        return int(said[-1]) if said else last


def check_kills(run: Path, times: int) -> None:
    dice = random.Random(0)
    flushed = -1
    for kill in range(times):
        flushed = killed_at_random(run, flushed + 1, dice)
        with open_run(run) as found:
            steps = found.steps
            # All that was flushed is there, from the first kill on, and a resumed session continued the count.
            assert steps[: flushed + 1] == tuple(range(flushed + 1))
            assert len(found.sessions) == kill + 1
            assert found.sessions[-1].ended is None
            assert len(found.series("p7.weight", "gradient.rms")) == len(steps)
        check_whole(run)


def test_a_killed_run_keeps_what_was_flushed_and_is_resumed_at_once(tmp_path: Path) -> None:
    check_kills(tmp_path / "run", 2)


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_nothing_that_was_flushed(tmp_path: Path) -> None:
    check_kills(tmp_path / "run", 20)


FULL_DISK = """
warnings = []
writer = RunWriter(sys.argv[1], on_trouble=warnings.append)
for number in range(20):
    writer.write(record(number))
writer.flush()
say(writer.healthy)
# From here on no file may grow by more than a few pages: what a full disk does to a write.
limit = os.path.getsize(os.path.join(sys.argv[1], "run.sqlite-wal")) + 20_000
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
for number in range(20, 2020):
    writer.write(record(number))
writer.flush()
say(writer.healthy)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
if sys.argv[2] == "room again":
    import headwater.store.writer as module
    writer._retry_at = 0.0  # rather than wait for five seconds
    for number in range(2020, 2030):
        writer.write(record(number))
    writer.flush()
    say(writer.healthy)
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
writer.close()
say(len(warnings), warnings[0])
say(*[(gap.records, gap.first_step, gap.last_step) for gap in writer.gaps])
"""


def test_training_goes_on_when_the_disk_is_full_and_the_gap_is_recorded(tmp_path: Path) -> None:
    before, during, after, warning, gaps = finished(FULL_DISK, tmp_path / "run", "room again")
    assert (before, during, after) == ("True", "False", "True")
    assert warning.startswith("1 ")
    assert "training goes on" in warning
    # 2,000 records of 100 rows, of which the last 100,000 rows were kept: 1,010 or so are lost.
    (records, first, last) = eval(gaps)
    assert first == 20
    assert records == last - first + 1
    with open_run(tmp_path / "run") as run:
        assert set(run.steps) == set(range(2030)) - set(range(first, last + 1))
        assert [(event.kind, event.step) for event in run.events] == [("gap", 20)]
        assert "could not be written" in str(run)
    check_whole(tmp_path / "run")


def test_a_disk_that_stays_full_leaves_a_whole_file(tmp_path: Path) -> None:
    *_, warning, gaps = finished(FULL_DISK, tmp_path / "run", "full for good")
    assert warning.startswith("1 ")
    assert gaps.startswith("(2000, 20, 2019)")
    with open_run(tmp_path / "run") as run:
        assert run.steps == tuple(range(20))
    check_whole(tmp_path / "run")


# ------------------------------------------------------------------------------------------- folders


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter: pytest's own is closed to the one that the child becomes."""
    folder = Path(tempfile.mkdtemp(prefix="headwater-test-"))
    folder.chmod(0o777)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o777)
    shutil.rmtree(folder)


# The superuser may write anywhere: become somebody else.
AS_NOBODY = """
import sqlite3, tempfile, encodings.idna, headwater.store.matrix
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
"""


def test_a_read_only_folder_is_refused_when_the_watch_begins(open_folder: Path) -> None:
    run = open_folder / "run"
    run.mkdir()
    run.chmod(0o555)
    program = AS_NOBODY + "try: RunWriter(sys.argv[1])\nexcept HeadwaterError as error: say(error)"
    (said,) = finished(program, run)
    assert "cannot write the run" in said
    assert "Permission denied" in said


@pytest.mark.parametrize("killed", [False, True], ids=["closed", "killed"])
def test_a_run_in_a_read_only_folder_can_be_read(open_folder: Path, killed: bool) -> None:
    run = open_folder / "run"
    if killed:
        with child(
            "writer = RunWriter(sys.argv[1])\nwriter.write(record(0))\nsay('written')\ntime.sleep(60)", run
        ) as one:
            assert line(one) == "written"
        (run / "run.sqlite-shm").unlink()  # only an index; a copy made by hand lacks it
        assert (run / "run.sqlite-wal").stat().st_size > 0
    else:
        with RunWriter(run) as writer:
            writer.write(step(0))
    for path in run.iterdir():
        path.chmod(0o444)
    run.chmod(0o555)
    (said,) = finished(AS_NOBODY + "say(open_run(sys.argv[1]).steps)", run)
    assert said == "(0,)"


# ------------------------------------------------------------------------------------------- two at once


def test_a_second_process_is_told_who_writes(tmp_path: Path) -> None:
    with child("writer = RunWriter(sys.argv[1])\nsay('open')\ntime.sleep(60)", tmp_path / "run") as first:
        assert line(first) == "open"
        with pytest.raises(
            OutputError, match=f"is being written by process {first.pid} on .*; stop it or choose another"
        ):
            RunWriter(tmp_path / "run")
        with open_run(tmp_path / "run") as run:  # reading is free
            assert run.steps == ()


FORKING = """
writer = RunWriter(sys.argv[1])
writer.write(record(0))
pid = os.fork()
if pid == 0:  # a data loader's worker: it has a copy of the writer, and outlives the process that was killed
    writer.write(record(1))
    writer.flush()
    writer.close()
    time.sleep(60)
    os._exit(0)
time.sleep(0.2)
say(pid)
time.sleep(60)
"""


def test_a_forked_worker_neither_writes_nor_holds_the_run(tmp_path: Path) -> None:
    with child(FORKING, tmp_path / "run") as first:
        worker = int(line(first))
        try:
            first.kill()
            first.wait()
            os.kill(worker, 0)  # alive
            with RunWriter(tmp_path / "run") as writer:
                writer.write(step(5))
        finally:
            os.kill(worker, signal.SIGKILL)
    with open_run(tmp_path / "run") as run:
        assert run.steps == (0, 5)


WRITE_ON = """
writer = RunWriter(sys.argv[1])
for number in range(10**9):
    writer.write(record(number))
    if number % 5 == 0:
        writer.flush()
    if number == 20:
        say("going")
    time.sleep(0.001)
"""


def test_a_run_can_be_read_while_another_process_writes_it(tmp_path: Path) -> None:
    with child(WRITE_ON, tmp_path / "run") as writing:
        assert line(writing) == "going"
        seen = 0
        with open_run(tmp_path / "run") as run:
            for _ in range(20):
                series = run.series("p3.weight", "gradient.mean")
                # The mean of step n is (2 + n) / 4: whole records only, in order.
                assert series == tuple((n, (2.0 + n) / 4.0) for n in range(len(series)))
                assert len(series) >= seen
                seen = len(series)
                time.sleep(0.02)
        assert seen > 20
