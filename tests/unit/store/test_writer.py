"""Records in, rows out: what the run file holds, read with plain SQL."""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.store.synthetic import BIAS, LAYERS, PARAMETERS, WEIGHT, norm_block, statistics_block, step

from headwater.errors import HeadwaterError, OutputError, RecordError
from headwater.records import Block, Evidence, Finding, RunEvent, Severity, Verdict, WatchedTensor
from headwater.store import RunWriter, open_run


@contextmanager
def database(run: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(run / "run.sqlite")) as connection:
        yield connection


def rows(run: Path, statement: str, *values: object) -> list[tuple[Any, ...]]:
    with database(run) as connection:
        return connection.execute(statement, values).fetchall()


def test_a_step_becomes_one_row_with_what_it_says(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a") as writer:
        writer.write(step(3, loss=1.5, learning_rate=0.1, loss_scale=1024.0, clip_coefficient=0.5, skipped="amp"))
    assert rows(
        tmp_path / "a",
        "SELECT step, group_name, micro, loss, learning_rate, loss_scale, clip_coefficient, skipped FROM steps",
    ) == [(3, "", None, 1.5, 0.1, 1024.0, 0.5, "amp")]


def test_plain_sql_answers_rms_of_a_tensor_over_time(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a") as writer:
        for number in range(3):
            scale = 10.0**-number
            writer.write(step(number, statistics_block([[3.0 * scale, 4.0 * scale], [0.0]])))
    found = rows(
        tmp_path / "a",
        "SELECT step, rms, l2_norm, rms_log10 FROM tensor_statistics WHERE tensor = 'fc1.weight' ORDER BY step",
    )
    # rms of (3, 4) is √(25/2), its norm 5; each step is a tenth of the one before.
    for number, (at, rms, l2_norm, rms_log10) in enumerate(found):
        assert at == number
        assert rms == pytest.approx(math.sqrt(12.5) * 10.0**-number)
        assert l2_norm == pytest.approx(5.0 * 10.0**-number)
        assert rms_log10 == pytest.approx(0.5 * math.log10(12.5) - number)


def test_the_view_derives_the_other_statistics(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a") as writer:
        writer.write(step(0, statistics_block([[0.0, -4.0, 2.0, 2.0], [math.nan, 5.0]])))
    columns = "mean, mean_abs, std, max_abs, min_abs_nonzero, kurtosis, zero_fraction, count, nan_count"
    found = rows(tmp_path / "a", f"SELECT {columns} FROM tensor_statistics ORDER BY execution_order")
    # (0, -4, 2, 2): mean 0, mean |x| 2, variance 24/4 = 6, Σx⁴ = 256 + 16 + 16 = 288, kurtosis 288·4/24² = 2.
    assert found[0] == pytest.approx((0.0, 2.0, math.sqrt(6.0), 4.0, 2.0, 2.0, 0.25, 4, 0))
    # NaN aside, the one element is 5: kurtosis 625·1/25² = 1.
    assert found[1] == pytest.approx((5.0, 5.0, 0.0, 5.0, 5.0, 1.0, 0.0, 2, 1))


def test_the_norm_tier_gives_the_same_rms_as_whole_statistics(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a") as writer:
        writer.write(step(0, norm_block([[5.0, 0.0, 0.0], [0.0, 0.0, 0.0]])))
    found = rows(tmp_path / "a", "SELECT tensor, rms, l2_norm, rms_log10 FROM tensor_statistics ORDER BY tensor DESC")
    assert found[0] == ("fc1.weight", pytest.approx(math.sqrt(12.5)), 5.0, pytest.approx(0.5 * math.log10(12.5)))
    assert found[1] == ("fc1.bias", 0.0, 0.0, -math.inf)


def test_the_norm_of_the_whole_gradient_is_the_one_before_clipping(tmp_path: Path) -> None:
    clipped = statistics_block([[0.3, 0.4], [0.0]], phase="post_clip")
    with RunWriter(tmp_path / "a") as writer:
        writer.write(step(0, statistics_block([[3.0, 4.0], [12.0]]), clipped))
        writer.write(step(1, statistics_block([[3.0, 4.0], [12.0]], phase="backward"), loss_scale=100.0))
        writer.write(step(2, norm_block([[5.0, 0.0, 0.0], [12.0, 0.0, 0.0]])))
        writer.write(step(3, statistics_block([[1.0], [1.0]], quantity="value", phase=None)))
        writer.write(step(4, statistics_block([[0.0, 0.0], [0.0]])))
        writer.write(step(5, statistics_block([[3e200, 4e200], [12e200]])))
        writer.write(step(6, statistics_block([[3.0, math.inf], [0.0]])))
        writer.write(step(7, statistics_block([[math.inf, math.nan], [0.0]])))
        writer.write(step(8, norm_block([[5.0, 0.0, 1.0], [12.0, 0.0, 0.0]])))
    # √(3² + 4² + 12²) = 13; a scaled gradient is divided by the loss scale; 1.3e201 has no square in a double.
    found = [value for (value,) in rows(tmp_path / "a", "SELECT gradient_norm_log10 FROM steps ORDER BY step")]
    log = math.log10(13.0)
    assert found[:3] == pytest.approx([log, log - 2.0, log])
    assert found[3] is None
    assert found[4] == -math.inf
    assert found[5] == pytest.approx(log + 200.0)
    # An element that is not finite is no element of nothing: the whole norm is infinite, or NaN, which SQL has not.
    assert found[6] == found[8] == math.inf
    read = [row.gradient_norm_log10 for row in open_run(tmp_path / "a").recorded_steps()]
    assert read[3] is None
    assert read[6] == math.inf
    assert found[7] is None
    assert math.isnan(read[7] or 0.0)


def test_what_was_not_observed_has_no_row_and_nan_is_told_from_it(tmp_path: Path) -> None:
    nan = math.nan
    updates = Block(
        quantity="update",
        tensors=PARAMETERS,
        columns=("update_ratio", "read_fraction"),
        rows=[[nan, 0.5], [nan, nan]],  # the first was looked at and is NaN; the second was not looked at
    )
    with RunWriter(tmp_path / "a") as writer:
        writer.write(step(0, statistics_block([[1.0], [nan]]), updates, loss=nan, learning_rate=None))
    assert rows(tmp_path / "a", "SELECT tensor, update_ratio, read_fraction FROM tensor_updates") == [
        ("fc1.weight", None, 0.5)
    ]
    assert rows(tmp_path / "a", "SELECT loss, learning_rate, nan_columns FROM steps") == [
        (None, None, "loss,gradient_norm_log10")
    ]


def test_a_block_of_columns_that_the_schema_does_not_name_is_kept(tmp_path: Path) -> None:
    block = Block(quantity="units", tensors=LAYERS, columns=("flip_rate",), rows=[[0.25]])
    with RunWriter(tmp_path / "a") as writer:
        writer.write(step(0, block))
    assert rows(tmp_path / "a", "SELECT name, value FROM measures") == [("flip_rate", 0.25)]


def test_a_finding_that_grew_takes_the_place_of_the_one_it_was(tmp_path: Path) -> None:
    said = Finding(
        code="HW604", defect="stalled layer", severity=Severity.WARNING, cause="c.", advice="a.", where=("a",), step=3
    )
    grown, other = replace(said, where=("a", "b"), cause="both."), replace(said, step=90)
    with RunWriter(tmp_path / "a") as writer:
        writer.write_finding(said, "G")
        writer.write_finding(said, "D")
        writer.write_finding(other, "G")
        writer.write_finding(grown, "G", grown=True)
        writer.write_finding(replace(grown, step=50), "G", grown=True)  # nothing to take the place of
    assert rows(tmp_path / "a", "SELECT group_name, step, names, cause FROM findings ORDER BY id") == [
        ("G", 3, '["a", "b"]', "both."), ("D", 3, '["a"]', "c."), ("G", 90, '["a"]', "c."), ("G", 50, '["a", "b"]', "both."),
    ]  # fmt: skip


def test_events_findings_and_metadata_are_tables_of_their_own(tmp_path: Path) -> None:
    finding = Finding(
        code="HW601", defect="spike", severity=Severity.WARNING, verdict=Verdict.EXPLODING, where=("fc1.weight",),
        evidence=(Evidence("z", 7.5),), cause="c", advice="a", step=4,
    )  # fmt: skip
    with RunWriter(tmp_path / "a", {"model_type": "MLP", "every": 10}) as writer:
        writer.write_event(RunEvent(kind="skipped", step=2, time=5.0, message="skipped", names=("fc1.weight",)))
        writer.write_finding(finding, "G")
        writer.update_metadata({"every": 20, "overhead": {"seconds": 0.5}})
    assert rows(tmp_path / "a", "SELECT kind, step, message, names FROM events") == [
        ("skipped", 2, "skipped", '["fc1.weight"]')
    ]
    assert rows(tmp_path / "a", "SELECT code, step, group_name, severity, verdict, names FROM findings") == [
        ("HW601", 4, "G", "warning", "exploding", '["fc1.weight"]')
    ]
    assert dict(rows(tmp_path / "a", "SELECT key, value FROM metadata")) == {
        "model_type": '"MLP"', "every": "20", "overhead": '{"seconds": 0.5}',
    }  # fmt: skip


def test_a_tensor_is_described_once_and_as_it_was_last_seen(tmp_path: Path) -> None:
    frozen = WatchedTensor(kind="parameter", name="fc1.weight", trainable=False, shape=(1, 2))
    with RunWriter(tmp_path / "a") as writer:
        writer.write(step(0, statistics_block([[1.0, 1.0], [1.0]], tensors=(frozen, BIAS))))
        writer.write(step(1, statistics_block([[1.0, 1.0], [1.0]], tensors=(WEIGHT, BIAS))))
    assert rows(tmp_path / "a", "SELECT name, trainable, fan_in FROM tensors ORDER BY id") == [
        ("fc1.weight", 1, 2),
        ("fc1.bias", 1, None),
    ]


def test_nothing_waits_longer_than_a_second_while_records_keep_coming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("headwater.store.writer.time.monotonic", lambda: now[0])
    with RunWriter(tmp_path / "a") as writer:
        writer.write(step(0))  # the first is written at once
        now[0] += 0.4
        writer.write(step(1))
        now[0] += 0.4
        writer.write(step(2))
        assert rows(tmp_path / "a", "SELECT step FROM steps") == [(0,)]
        now[0] += 0.4
        writer.write(step(3))
        assert rows(tmp_path / "a", "SELECT step FROM steps") == [(0,), (1,), (2,), (3,)]
        writer.write(step(4))
        writer.flush()
        assert rows(tmp_path / "a", "SELECT count(*) FROM steps") == [(5,)]


def test_many_rows_do_not_wait_for_the_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.store.writer.FLUSH_ROWS", 4)
    with RunWriter(tmp_path / "a") as writer:
        writer.write(step(0))
        writer.write(step(1))  # two rows each
        assert rows(tmp_path / "a", "SELECT count(*) FROM steps") == [(1,)]
        writer.write(step(2))
        assert rows(tmp_path / "a", "SELECT count(*) FROM steps") == [(3,)]


def test_a_second_session_appends_and_supersedes_from_where_it_begins(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a") as writer:
        for number in (0, 1, 2, 4):
            writer.write(step(number, loss=1.0))
    with RunWriter(tmp_path / "a") as writer:
        assert writer.session == 2
        for number in (2, 3):
            writer.write(step(number, loss=2.0))
    assert rows(tmp_path / "a", "SELECT count(*) FROM steps") == [(6,)]
    assert rows(tmp_path / "a", "SELECT step, loss FROM current_steps ORDER BY step") == [
        (0, 1.0), (1, 1.0), (2, 2.0), (3, 2.0),
    ]  # fmt: skip
    assert rows(tmp_path / "a", "SELECT count(*) FROM tensors") == [(2,)]


def test_a_session_without_a_step_supersedes_nothing(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a") as writer:
        writer.write(step(0))
    with RunWriter(tmp_path / "a"):
        pass
    assert rows(tmp_path / "a", "SELECT step FROM current_steps") == [(0,)]


def test_of_two_rows_of_one_step_in_a_session_the_later_one_counts(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a") as writer:
        writer.write(step(7, loss=1.0))
        writer.write(step(7, loss=3.0))
        writer.write(step(7, loss=5.0, micro=0))
    assert rows(tmp_path / "a", "SELECT loss, micro FROM current_steps ORDER BY micro") == [(3.0, None), (5.0, 0)]


def test_groups_are_superseded_each_on_its_own(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a") as writer:
        for number in range(3):
            writer.write(step(number, group="G"))
            writer.write(step(number, group="D"))
    with RunWriter(tmp_path / "a") as writer:
        writer.write(step(1, group="G"))
    assert rows(tmp_path / "a", "SELECT group_name, step FROM current_steps ORDER BY 1, 2") == [
        ("D", 0), ("D", 1), ("D", 2), ("G", 0), ("G", 1),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------- opening


def test_two_writers_of_one_process_are_refused_with_advice(tmp_path: Path) -> None:
    with (
        RunWriter(tmp_path / "a"),
        pytest.raises(HeadwaterError, match=r"already being written by this process.*another run name"),
    ):
        RunWriter(tmp_path / "a")
    with RunWriter(tmp_path / "a") as writer:  # and free again afterwards
        assert writer.session == 2


def test_a_writer_that_was_dropped_without_close_leaves_the_run_free(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "a")
    writer._connection.close()  # what the garbage collector does too, with a warning on newer Pythons
    del writer
    with RunWriter(tmp_path / "a") as again:
        assert again.session == 2


def test_the_lock_file_is_gone_after_close(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a"):
        assert (tmp_path / "a" / "run.lock").read_text().split()[0] == str(os.getpid())
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["run.sqlite"]


def test_a_stale_lock_file_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.lock").write_text("999999 gone\n")
    with RunWriter(tmp_path / "a") as writer:
        assert writer.session == 1


@pytest.mark.parametrize(
    "name", ["ünï cødé ☃", "a'b\"c", "per%cent?query#hash", "new\nline", "-dash", "a;b", " spaces "]
)
def test_odd_names_are_fine(tmp_path: Path, name: str) -> None:
    with RunWriter(tmp_path / name) as writer:
        writer.write(step(0))
    assert rows(tmp_path / name, "SELECT step FROM steps") == [(0,)]


def test_a_run_name_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("notes")
    with pytest.raises(OutputError, match="it is a file, and a run is a folder"):
        RunWriter(tmp_path / "a")
    with pytest.raises(OutputError, match="cannot write the run"):
        RunWriter(tmp_path / "a" / "b")
    assert (tmp_path / "a").read_text() == "notes"


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "run.sqlite"
    file.write_bytes(b"not a database " * 100)
    with pytest.raises(RecordError, match="damaged or something else"):
        RunWriter(tmp_path / "a")
    assert file.read_bytes() == b"not a database " * 100


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with database(tmp_path / "a") as connection:
        connection.execute("CREATE TABLE t(x)")
    with pytest.raises(RecordError, match="of another program"):
        RunWriter(tmp_path / "a")
    assert rows(tmp_path / "a", "SELECT name FROM sqlite_master") == [("t",)]


def test_a_run_of_a_newer_headwater_is_left_alone(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a"):
        pass
    with database(tmp_path / "a") as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(RecordError, match=r"newer than this headwater.*upgrade"):
        RunWriter(tmp_path / "a")


def test_an_empty_file_becomes_a_run(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.sqlite").touch()
    with RunWriter(tmp_path / "a") as writer:
        assert writer.session == 1


# ------------------------------------------------------------------------------------------- trouble


def test_a_record_that_cannot_be_stored_is_left_out_and_told(tmp_path: Path) -> None:
    warnings: list[str] = []
    with RunWriter(tmp_path / "a", on_trouble=warnings.append) as writer:
        writer.write(step(0))
        writer.write(step(1))
        writer.write(step(2, loss="2.0 dollars"))
        writer.write(step(3))
        writer.flush()
        assert writer.healthy
        (gap,) = writer.gaps
    assert (gap.records, gap.first_step, gap.last_step) == (1, 2, 2)
    assert rows(tmp_path / "a", "SELECT step FROM steps") == [(0,), (1,), (3,)]
    assert rows(tmp_path / "a", "SELECT kind, step FROM events") == [("gap", 2)]
    assert len(warnings) == 1


def test_a_locked_file_delays_the_rows_and_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.store.writer.BUSY_SECONDS", 0.01)
    monkeypatch.setattr("headwater.store.writer.RETRY_SECONDS", 0.0)
    warnings: list[str] = []
    with RunWriter(tmp_path / "a", on_trouble=warnings.append) as writer:
        with database(tmp_path / "a") as other:
            other.execute("BEGIN IMMEDIATE")
            writer.write(step(0))
            writer.flush()
            assert not writer.healthy
            assert "locked" in warnings[0]
        writer.flush()
        assert writer.healthy
        assert writer.gaps == ()
    assert rows(tmp_path / "a", "SELECT step FROM steps") == [(0,)]
    assert len(warnings) == 1


def test_while_the_disk_refuses_memory_stays_bounded_and_the_gap_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwater.store.writer.KEPT_ROWS", 6)
    monkeypatch.setattr("headwater.store.writer.RETRY_SECONDS", 0.0)
    warnings: list[str] = []
    with RunWriter(tmp_path / "a", on_trouble=warnings.append) as writer:
        writer.write(step(0))
        (pages,) = writer._connection.execute("PRAGMA page_count").fetchone()
        writer._connection.execute(f"PRAGMA max_page_count = {pages}")  # the disk is full
        big = " ".join(["the loss scaler found an infinity"] * 1000)  # more than the last pages have room for
        for number in range(1, 11):
            writer.write(step(number, skipped=big))
            writer.flush()
        assert not writer.healthy
        writer._connection.execute("PRAGMA max_page_count = 1000000")  # there is room again
        writer.flush()
        assert writer.healthy
        (gap,) = writer.gaps
    # Three records of two rows each were kept, the seven before them dropped.
    assert (gap.records, gap.first_step, gap.last_step) == (7, 1, 7)
    assert "full" in gap.reason
    assert rows(tmp_path / "a", "SELECT step FROM steps") == [(0,), (8,), (9,), (10,)]
    assert rows(tmp_path / "a", "SELECT message FROM events WHERE kind = 'gap'") == [
        ("7 records (steps 1 to 7) could not be written: database or disk is full.",)
    ]
    assert len(warnings) == 1


def test_closing_a_run_whose_file_was_removed_raises_nothing(tmp_path: Path) -> None:
    warnings: list[str] = []
    with RunWriter(tmp_path / "a", on_trouble=warnings.append) as writer:
        (tmp_path / "a" / "run.sqlite").unlink()
        writer.write(step(0))
        assert not writer.healthy
    assert writer.gaps[0].records == 1
    assert len(warnings) == 1


def test_by_default_the_one_warning_goes_to_the_logger(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with RunWriter(tmp_path / "a") as writer:
        (tmp_path / "a" / "run.sqlite").unlink()
        writer.write(step(0))
        writer.flush()
    assert [record.name for record in caplog.records] == ["headwater.store"]
    assert "training goes on" in caplog.text


def test_after_close_nothing_is_written_and_nothing_raised(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "a")
    writer.close()
    writer.write(step(0))
    writer.flush()
    writer.close()
    assert rows(tmp_path / "a", "SELECT count(*) FROM steps") == [(0,)]
