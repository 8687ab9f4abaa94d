"""What a recorded run answers."""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from tests.unit.store.synthetic import (
    BIAS,
    LAYER,
    LAYERS,
    PARAMETERS,
    WEIGHT,
    norm_block,
    statistics_block,
    statistics_row,
    step,
)

import headwater as hw
from headwater.errors import RecordError
from headwater.records import (
    Block,
    Evidence,
    Finding,
    RunEvent,
    RunSource,
    Severity,
    Statistics,
    StepRecord,
    Verdict,
    WatchedTensor,
)
from headwater.store import Run, RunWriter, open_run


def recorded(place: Path, *records: StepRecord, **metadata: object) -> Run:
    with RunWriter(place, metadata) as writer:
        for record in records:
            writer.write(record)
    return open_run(place)


def layer_blocks(activation: list[float], gradient: list[float]) -> tuple[Block, Block]:
    return (
        statistics_block([activation], "activation", None, LAYERS),
        statistics_block([gradient], "output_gradient", None, LAYERS),
    )


# ------------------------------------------------------------------------------------------- what comes back


def test_a_run_is_a_run_source(tmp_path: Path) -> None:
    source: RunSource = recorded(tmp_path / "a", step(0))
    assert source.name == "a"


def test_open_run_is_public_and_takes_the_folder_or_the_file(tmp_path: Path) -> None:
    recorded(tmp_path / "a", step(0)).close()
    with hw.open_run(tmp_path / "a") as by_folder, hw.open_run(str(tmp_path / "a" / "run.sqlite")) as by_file:
        assert by_folder.steps == by_file.steps == (0,)
        assert by_folder.name == by_file.name == "a"


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    record = step(
        5,
        statistics_block([[3.0, math.nan, 1e-30], [math.inf]]),
        statistics_block([[0.5, 2.0], [0.0]], "value", None),
        *layer_blocks([1.0, -1.0], [0.0, 1e-9]),
        Block(
            quantity="units", tensors=LAYERS, columns=("unit_count", "dead_count", "saturated_fraction", "window_steps"),
            rows=[[8.0, 2.0, 0.25, 5.0]],
        ),
        Block(quantity="units", tensors=LAYERS, columns=("flip_rate", "age"), rows=[[0.5, 3.0]]),
        group="", skipped="amp", loss=2.5, learning_rate=0.1, loss_scale=None, clip_coefficient=0.5, activations=True,
        missing={"fc2.weight": "none"},
    )  # fmt: skip
    with recorded(tmp_path / "a", record) as run:
        found = run.record(5)
    assert found == record


def test_nan_in_a_steps_own_numbers_is_told_from_not_given(tmp_path: Path) -> None:
    with recorded(tmp_path / "a", step(0, loss=math.nan, clip_coefficient=None, loss_scale=math.inf)) as run:
        (row,) = run.recorded_steps()
    assert row.loss is not None
    assert math.isnan(row.loss)
    assert row.clip_coefficient is None
    assert row.loss_scale == math.inf


def test_a_tensor_that_was_not_observed_is_in_no_block(tmp_path: Path) -> None:
    nan = math.nan
    block = Block(
        quantity="gradient", phase="pre_clip", tensors=PARAMETERS, columns=statistics_block([[1.0], [1.0]]).columns,
        rows=[statistics_row([1.0, 2.0]), [nan] * 11],
    )  # fmt: skip
    with recorded(tmp_path / "a", step(0, block)) as run:
        (found,) = run.record(0).blocks
        assert found.tensors == (WEIGHT,)
        assert run.series("fc1.bias", "gradient.rms") == ()
        matrix = run.matrix("gradient", "rms")
    assert matrix.values == ((pytest.approx(math.sqrt(2.5)),), (None,))


def test_tensors_are_in_execution_order_whatever_the_order_of_writing(tmp_path: Path) -> None:
    late = WatchedTensor(kind="parameter", name="early.weight", order=-1)
    with recorded(
        tmp_path / "a", step(0, statistics_block([[1.0], [1.0], [1.0]], tensors=(WEIGHT, BIAS, late)))
    ) as run:
        assert [tensor.name for tensor in run.tensors] == ["early.weight", "fc1.weight", "fc1.bias"]


def test_metadata_sessions_and_groups(tmp_path: Path) -> None:
    recorded(tmp_path / "a", step(0, group="G"), step(0, group="D"), model_type="GAN", every=10).close()
    with recorded(tmp_path / "a", every=5) as run:
        assert run.metadata == {"model_type": "GAN", "every": 5}
        first, second = run.sessions
        assert (first.number, first.metadata) == (1, {"model_type": "GAN", "every": 10})
        assert second.metadata == {"every": 5}
        assert first.ended is not None
        assert set(run.groups) == {"G", "D"}
        with pytest.raises(KeyError, match="no group named 'X'"):
            run.recorded_steps("X")
        assert [row.group for row in run.recorded_steps("G")] == ["G"]
        assert run.steps == (0,)


def test_findings_and_events_come_back_in_order(tmp_path: Path) -> None:
    late = Finding(
        code="HW602", defect="drift", severity=Severity.CRITICAL, verdict=Verdict.VANISHING, where=("fc1.weight",),
        evidence=(Evidence("slope", -math.inf, "decades", "per 1000 steps"),), cause="c", advice="a", step=40,
        symptom_of="HW101",
    )  # fmt: skip
    early = Finding(code="HW601", defect="spike", severity=Severity.INFO, cause="c", advice="a", step=3)
    events = (
        RunEvent(kind="attached", time=9.0, message="m"),
        RunEvent(kind="skipped", step=2, group="G", time=1.0, message="the clock went back", names=("a", "b")),
    )
    with RunWriter(tmp_path / "a") as writer:
        writer.write_finding(late)
        writer.write_finding(early)
        for event in events:
            writer.write_event(event)
    with open_run(tmp_path / "a") as run:
        assert run.findings == (early, late)
        assert run.events == events


def test_micro_batches_are_read_by_number_and_are_no_steps(tmp_path: Path) -> None:
    with recorded(tmp_path / "a", step(0, micro=0, loss=1.0), step(0, micro=1, loss=2.0), step(0, loss=3.0)) as run:
        assert [row.loss for row in run.recorded_steps()] == [3.0]
        assert run.record(0, micro=1).loss == 2.0
        assert [record.micro for record in run.records()] == [None, 0, 1]
        assert run.series("fc1.weight", "gradient.l2_norm") == ((0, 5.0),)


# ------------------------------------------------------------------------------------------- series


def test_series_of_statistics_match_the_record(tmp_path: Path) -> None:
    values = [[3.0, -4.0, 0.0], [1e-200, 2e-200, 1e-200]]
    with recorded(
        tmp_path / "a", *(step(n, statistics_block([value, [0.0]])) for n, value in enumerate(values))
    ) as run:
        for name in (
            "rms", "l2_norm", "mean", "mean_abs", "std", "variance", "max_abs", "min_abs_nonzero", "kurtosis",
            "zero_fraction", "rms_log10", "count", "zero_count", "nan_count",
        ):  # fmt: skip
            found = run.series("fc1.weight", f"gradient.{name}")
            expected = [float(getattr(Statistics.of(value), name)) for value in values]
            assert found == tuple(enumerate(expected)), name
        assert dict(run.series("fc1.weight", "gradient.l2_norm_log10"))[0] == pytest.approx(math.log10(5.0))


def test_a_gradient_series_is_that_of_the_phase_the_optimizer_used(tmp_path: Path) -> None:
    clipped = statistics_block([[0.3, 0.4], [0.0]], phase="post_clip")
    raw = statistics_block([[3.0, 4.0], [0.0]])
    with recorded(tmp_path / "a", step(0, raw), step(1, raw, clipped), step(2, clipped, raw)) as run:
        assert [value for _, value in run.series("fc1.weight", "gradient.l2_norm")] == pytest.approx([5.0, 0.5, 0.5])
        assert [value for _, value in run.series("fc1.weight", "gradient.l2_norm", phase="pre_clip")] == [5.0] * 3
        assert run.series("fc1.weight", "gradient.l2_norm", phase="backward") == ()


def test_series_of_the_norm_tier_and_of_whole_statistics_continue_each_other(tmp_path: Path) -> None:
    with recorded(tmp_path / "a", step(0), step(1, norm_block([[5.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))) as run:
        for name in ("rms", "l2_norm", "rms_log10"):
            first, second = (value for _, value in run.series("fc1.weight", f"gradient.{name}"))
            assert first == pytest.approx(second)
        assert [at for at, _ in run.series("fc1.weight", "gradient.kurtosis")] == [0]


def test_series_of_updates_units_and_of_columns_without_a_table(tmp_path: Path) -> None:
    blocks = (
        Block(quantity="update", tensors=PARAMETERS, columns=("update_ratio", "read_fraction"), rows=[[1e-3, 1.0]] * 2),
        Block(
            quantity="units", tensors=LAYERS, columns=("unit_count", "dead_count", "saturated_fraction", "window_steps"),
            rows=[[8.0, 2.0, math.nan, 5.0]],
        ),
        Block(quantity="second_moment", tensors=PARAMETERS, columns=("root_rms", "spread"), rows=[[0.1, 7.0], [0.2, 8.0]]),
    )  # fmt: skip
    with recorded(tmp_path / "a", step(4, *blocks)) as run:
        assert run.series("fc1.bias", "update.update_ratio_log10") == ((4, pytest.approx(-3.0)),)
        assert run.series("fc1", "units.dead_fraction") == ((4, 0.25),)
        assert run.series("fc1", "units.dead_count") == ((4, 2.0),)
        assert run.series("fc1.bias", "second_moment.spread") == ((4, 8.0),)
        ((at, undefined),) = run.series("fc1", "units.saturated_fraction")
        assert at == 4
        assert math.isnan(undefined)


def test_unknown_names_are_answered_with_near_ones(tmp_path: Path) -> None:
    with recorded(tmp_path / "a", step(0, *layer_blocks([1.0], [1.0])), step(10)) as run:
        with pytest.raises(KeyError, match=r"no parameter named 'fc1\.wieght'; did you mean 'fc1\.weight'"):
            run.series("fc1.wieght", "gradient.rms")
        with pytest.raises(KeyError, match=r"no statistic of 'gradient' named 'rsm'; did you mean 'rms'"):
            run.series("fc1.weight", "gradient.rsm")
        with pytest.raises(KeyError, match=r"no statistic named 'gradients\.rms'; did you mean 'gradient\.rms'"):
            run.series("fc1.weight", "gradients.rms")
        with pytest.raises(KeyError, match="no layer named"):
            run.series("fc1.weight", "activation.rms")
        with pytest.raises(KeyError, match="step 7 was not recorded; the nearest are 10, 0"):
            run.profile(7)
        with pytest.raises(KeyError, match="micro-batch 3 of step 0 was not recorded; there are none"):
            run.record(0, micro=3)
        with pytest.raises(KeyError, match="no group named 'G'"):
            run.record(0, "G")


def test_aliases_name_a_tensor_too(tmp_path: Path) -> None:
    tied = WatchedTensor(kind="parameter", name="embed.weight", aliases=("head.weight",), shape=(2,))
    with recorded(tmp_path / "a", step(0, statistics_block([[3.0, 4.0]], tensors=(tied,)))) as run:
        assert run.series("head.weight", "gradient.l2_norm") == ((0, 5.0),)


# ------------------------------------------------------------------------------------------- resumed runs


def test_of_a_resumed_run_the_later_session_counts(tmp_path: Path) -> None:
    finding = Finding(code="HW601", defect="spike", severity=Severity.INFO, cause="c", advice="a", step=3)
    with RunWriter(tmp_path / "a") as writer:
        for number in (0, 1, 2, 3, 4):
            writer.write(step(number, loss=1.0, time=5000.0))
        writer.write_finding(finding)
    with RunWriter(tmp_path / "a") as writer:  # from the checkpoint at step 2, on a machine whose clock is behind
        for number in (2, 3):
            writer.write(step(number, loss=2.0, time=10.0))
    with open_run(tmp_path / "a") as run:
        assert [(row.step, row.loss) for row in run.recorded_steps()] == [(0, 1.0), (1, 1.0), (2, 2.0), (3, 2.0)]
        assert run.findings == ()  # of the abandoned steps; the resumed run finds its own
        assert len(run.series("fc1.weight", "gradient.rms")) == 4


# ------------------------------------------------------------------------------------------- profile, sums


def test_a_profile_has_the_layers_the_parameters_and_the_latest_values(tmp_path: Path) -> None:
    values = statistics_block([[0.1, 0.2], [0.3]], "value", None)
    later = statistics_block([[9.0, 9.0], [9.0]], "value", None)
    with recorded(
        tmp_path / "a",
        step(0, statistics_block([[3.0, 4.0], [0.0]]), values),
        step(1, statistics_block([[3.0, 4.0], [0.0]]), *layer_blocks([1.0, 3.0], [0.5, 0.5]), loss=0.25),
        step(2, statistics_block([[3.0, 4.0], [0.0]]), later),
        context={"model_type": "MLP", "torch_version": "2.13", "seed": 7, "output_shape": [4, 1]},
    ) as run:
        profile = run.profile(1)
    assert profile.model_type == "MLP"
    assert profile.seed == 7
    assert profile.output_shape == (4, 1)
    assert profile.loss == 0.25
    assert profile.parameter("fc1.weight").value == Statistics.of([0.1, 0.2])
    assert profile.parameter("fc1.weight").gradient == Statistics.of([3.0, 4.0])
    assert profile.parameter("fc1.bias").state == "exact_zero"
    assert profile.layer("fc1").activation == Statistics.of([1.0, 3.0])
    assert profile.layer("fc1").gradient == Statistics.of([0.5, 0.5])


def test_the_context_of_a_group_is_its_own(tmp_path: Path) -> None:
    with recorded(
        tmp_path / "a", step(0, group="G"), context={"G": {"model_type": "Generator"}, "D": {"model_type": "Critic"}}
    ) as run:
        profile = run.profile(0, "G")
        assert profile.model_type == "Generator"
        assert profile.layers == profile.trunk == ()  # no layer was looked at


def test_top_contributors_are_shares_of_the_squared_norm(tmp_path: Path) -> None:
    tiny = statistics_block([[3e-200, 4e-200], [5e-200]])
    broken = statistics_block([[math.nan, 4.0], [1e30]])
    with recorded(
        tmp_path / "a",
        step(0, statistics_block([[3.0, 4.0], [12.0]])),
        step(1, norm_block([[5.0, 0.0, 0.0], [12.0, 0.0, 0.0]])),
        step(2, tiny),
        step(3, statistics_block([[0.0, 0.0], [0.0]])),
        step(4, broken),
        step(5, statistics_block([[1.0, 1.0], [1.0]], "value", None)),
    ) as run:
        # 12² = 144 of 169, 5² = 25 of 169.
        for number in (0, 1):
            shares = run.top_contributors(number)
            assert [name for name, _ in shares] == ["fc1.bias", "fc1.weight"]
            assert [share for _, share in shares] == pytest.approx([144 / 169, 25 / 169])
            assert math.fsum(share for _, share in shares) == pytest.approx(1.0, abs=1e-15)
        assert [share for _, share in run.top_contributors(2)] == pytest.approx([0.5, 0.5])
        assert run.top_contributors(3) == ()
        assert run.top_contributors(4)[0] == ("fc1.weight", 1.0)
        assert run.top_contributors(5) == ()


def test_pooled_statistics_are_those_of_the_concatenation(tmp_path: Path) -> None:
    first, second = [3.0, -4.0, 1e-3], [100.0, 0.0]
    with recorded(tmp_path / "a", step(0, statistics_block([first, second]))) as run:
        pooled = run.pooled(["fc1.weight", "fc1.bias"], "gradient", 0)
        expected = Statistics.of(first + second)
        assert pooled.count == expected.count
        assert pooled.zero_count == expected.zero_count
        for name in ("rms", "mean", "std", "max_abs", "min_abs_nonzero", "kurtosis"):
            assert getattr(pooled, name) == pytest.approx(getattr(expected, name), rel=1e-12), name
        with pytest.raises(KeyError, match="no whole statistics of 'value'"):
            run.pooled(["fc1.weight"], "value", 0)


# ------------------------------------------------------------------------------------------- matrix


def test_a_matrix_has_one_row_per_tensor_and_one_column_per_step(tmp_path: Path) -> None:
    with recorded(
        tmp_path / "a",
        step(0),
        step(1, statistics_block([[0.0, 0.0], [math.nan]])),
        step(2, *layer_blocks([1.0], [1.0])),
    ) as run:
        matrix = run.matrix("gradient", "rms_log10")
        assert [tensor.name for tensor in matrix.tensors] == ["fc1.weight", "fc1.bias"]
        assert matrix.steps == (0, 1)  # the quantity was not recorded at step 2
        assert matrix.stride == 1
        assert matrix.values[0] == (pytest.approx(0.5 * math.log10(12.5)), -math.inf)
        assert matrix.values[1][0] == -math.inf
        undefined = matrix.values[1][1]
        assert undefined is not None
        assert math.isnan(undefined)
        assert [tensor.name for tensor in run.matrix("gradient", "rms", kind="bias").tensors] == ["fc1.bias"]
        assert [tensor.name for tensor in run.matrix("gradient", "rms", tensors=["fc1.bias"]).tensors] == ["fc1.bias"]
        assert run.matrix("activation", "rms").values == ((1.0,),)
        assert run.matrix("update", "update_ratio").steps == ()


def test_columns_are_medians_of_neighbouring_steps(tmp_path: Path) -> None:
    records = [step(10 * n, statistics_block([[float(n * n), 0.0], [0.0]])) for n in range(9)]
    with recorded(tmp_path / "a", *records) as run:
        matrix = run.matrix("gradient", "max_abs", max_columns=3)
    assert matrix.stride == 3
    assert matrix.steps == (0, 30, 60)
    # The middle ones of 0 1 4 · 9 16 25 · 36 49 64.
    assert matrix.values[0] == (1.0, 16.0, 49.0)


def test_a_run_too_long_to_read_is_sampled_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.store.matrix.ROWS_READ", 4)
    records = [step(n, statistics_block([[float(n), 0.0], [0.0]])) for n in range(10)]
    with recorded(tmp_path / "a", *records) as run:
        matrix = run.matrix("gradient", "max_abs", max_columns=2)
    # Two columns of five steps, two tensors, four rows: one step each, the middle one.
    assert matrix.steps == (0, 5)
    assert matrix.values[0] == (2.0, 7.0)


def test_many_tensors_are_read_as_a_range_and_agree_with_single_look_ups(tmp_path: Path) -> None:
    many = tuple(WatchedTensor(kind="parameter", name=f"p{n}", order=n, shape=(1,)) for n in range(100))
    block = statistics_block([[float(n)] for n in range(100)], tensors=many)
    with recorded(tmp_path / "a", step(0, block)) as run:
        values = [column[0] for column in run.matrix("gradient", "l2_norm").values]
        assert values == [float(n) for n in range(100)]
        assert run.matrix("gradient", "l2_norm", tensors=["p7", "p3"]).values == ((3.0,), (7.0,))


# ------------------------------------------------------------------------------------------- the file itself


def test_what_another_process_adds_is_seen(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a") as writer:
        writer.write(step(0))
        with open_run(tmp_path / "a") as run:
            assert run.steps == (0,)
            writer.write(step(1))
            writer.flush()
            assert run.steps == (0, 1)
            assert len(run.series("fc1.weight", "gradient.rms")) == 2
            assert "still being written" in str(run)


def test_a_missing_run_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="there is no run at"):
        open_run(tmp_path / "nothing")


def test_an_empty_file_is_no_run_yet(tmp_path: Path) -> None:
    (tmp_path / "run.sqlite").touch()
    with pytest.raises(RecordError, match="ended before anything was written"):
        open_run(tmp_path)


def test_a_text_file_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "run.sqlite").write_text("step,loss\n" * 1000)
    with pytest.raises(RecordError, match="damaged or something else"):
        open_run(tmp_path)


def test_a_database_of_another_program_is_no_run(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "run.sqlite")) as connection:
        connection.execute("CREATE TABLE steps(id)")
    with pytest.raises(RecordError, match="another program"):
        open_run(tmp_path)


def test_a_run_of_a_newer_headwater_asks_for_an_upgrade(tmp_path: Path) -> None:
    recorded(tmp_path / "a", step(0)).close()
    with closing(sqlite3.connect(tmp_path / "a" / "run.sqlite")) as connection:
        connection.execute("PRAGMA user_version = 2")
    with pytest.raises(RecordError, match="schema version 2, newer than this headwater reads"):
        open_run(tmp_path / "a")


def test_a_truncated_file_is_reported_as_damaged(tmp_path: Path) -> None:
    recorded(tmp_path / "a", *(step(n) for n in range(2000))).close()
    file = tmp_path / "a" / "run.sqlite"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordError, match="damaged"), open_run(tmp_path / "a") as run:
        list(run.records())


def test_bytes_turned_over_are_reported_as_damaged(tmp_path: Path) -> None:
    recorded(tmp_path / "a", *(step(n) for n in range(2000))).close()
    file = tmp_path / "a" / "run.sqlite"
    data = bytearray(file.read_bytes())
    for place in range(4096, len(data)):
        data[place] ^= 0x5A
    file.write_bytes(data)
    with pytest.raises(RecordError, match="damaged"), open_run(tmp_path / "a") as run:
        list(run.records())


def test_after_close_the_run_says_so(tmp_path: Path) -> None:
    run = recorded(tmp_path / "a", step(0))
    run.close()
    run.close()
    with pytest.raises(RecordError, match="was closed; open it again"):
        _ = run.steps


def test_the_summary_is_one_paragraph(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "digits", {"model_type": "MLP"}) as writer:
        writer.write(step(0, *layer_blocks([1.0], [1.0]), statistics_block([[1.0], [1.0]]), loss=2.5))
        writer.write(step(10, skipped="amp", loss=0.5))
        writer.write_finding(
            Finding(code="HW601", defect="spike", severity=Severity.INFO, cause="It grew.", advice="Clip.", step=10)
        )
    with open_run(tmp_path / "digits") as run:
        assert str(run) == (
            "Run 'digits' of MLP: 2 recorded steps, 0 to 10; 2 parameters and 1 layer. Loss 2.5 to 0.5. 1 step skipped. "
            "1 finding: HW601 info: spike at step 10. It grew. Clip."
        )
        assert repr(run) == f"open_run({str(tmp_path / 'digits' / 'run.sqlite')!r})"
    assert LAYER.name == "fc1"


def test_reading_a_run_needs_no_torch() -> None:
    program = "import sys; from headwater.store import RunWriter, open_run; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
