"""A run as data for other programs."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tests.unit.store.synthetic import LAYERS, PARAMETERS, norm_block, statistics_block, step

from headwater.errors import HeadwaterError, OutputError
from headwater.records import Block, Evidence, Finding, RunEvent, Severity, Statistics
from headwater.store import Run, RunWriter, open_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two steps: whole statistics, updates and units at the first, norms and a skipped step at the second."""
    updates = Block(
        quantity="update", tensors=PARAMETERS, columns=("update_ratio", "read_fraction"), rows=[[1e-3, 1.0], [math.nan, 0.5]]
    )  # fmt: skip
    units = Block(
        quantity="units", tensors=LAYERS, columns=("unit_count", "dead_count", "saturated_fraction", "window_steps"),
        rows=[[8.0, 2.0, 0.5, 4.0]],
    )  # fmt: skip
    with RunWriter(tmp_path / "run", {"model_type": "MLP", "limit": math.inf}) as writer:
        writer.write(step(0, statistics_block([[3.0, 4.0], [math.nan]]), updates, units, loss=math.nan))
        writer.write(step(1, norm_block([[5.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), skipped="amp", loss_scale=64.0))
        writer.write_event(RunEvent(kind="skipped", step=1, time=1.0, message="<script>", names=("a",)))
        writer.write_finding(
            Finding(
                code="HW601", defect="spike", severity=Severity.INFO, evidence=(Evidence("z", math.inf),), cause="c",
                advice="a", step=1,
            )
        )  # fmt: skip
    return open_run(tmp_path / "run")


def read_csv(run: Run, place: Path) -> list[dict[str, str]]:
    run.to_csv(place)
    with open(place, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_table_has_one_row_per_step_tensor_quantity_and_phase(run: Run, tmp_path: Path) -> None:
    rows = read_csv(run, tmp_path / "a.csv")
    assert [(row["step"], row["tensor"], row["quantity"], row["phase"]) for row in rows] == [
        ("0", "fc1.weight", "gradient", "pre_clip"),
        ("0", "fc1.bias", "gradient", "pre_clip"),
        ("0", "fc1.weight", "update", ""),
        ("0", "fc1.bias", "update", ""),
        ("0", "fc1", "units", ""),
        ("1", "fc1.weight", "gradient", "pre_clip"),
        ("1", "fc1.bias", "gradient", "pre_clip"),
    ]


def test_cells_hold_the_derived_statistics_in_full_precision(run: Run, tmp_path: Path) -> None:
    weight, bias, update, unknown, units, norms, _ = read_csv(run, tmp_path / "a.csv")
    assert float(weight["rms"]) == Statistics.of([3.0, 4.0]).rms
    assert float(weight["kurtosis"]) == Statistics.of([3.0, 4.0]).kurtosis
    assert (weight["count"], weight["zero_count"], weight["role"], weight["layer"]) == ("2", "0", "weight", "fc1")
    assert weight["update_ratio"] == ""
    assert (weight["loss"], norms["loss"]) == ("nan", "2.0")
    assert (bias["rms"], bias["nan_count"], bias["nonfinite_count"]) == ("nan", "1", "1.0")
    assert (update["update_ratio"], update["rms"], unknown["update_ratio"]) == ("0.001", "", "nan")
    assert (units["dead_fraction"], units["role"]) == ("0.25", "linear")
    assert (norms["skipped"], norms["loss_scale"], norms["l2_norm"]) == ("amp", "64.0", "5.0")
    assert float(norms["rms"]) == pytest.approx(math.sqrt(12.5))
    assert float(norms["rms_log10"]) == pytest.approx(0.5 * math.log10(12.5))


def test_pandas_gets_the_same_table(run: Run) -> None:
    frame = run.to_pandas()
    assert len(frame) == 7
    assert frame["step"].dtype == "int64"
    assert frame["rms"].dtype == "float64"
    chosen = frame[(frame.tensor == "fc1.weight") & (frame.quantity == "gradient")].set_index("step")["l2_norm"]
    assert chosen.to_dict() == {0: 5.0, 1: 5.0}


def test_without_pandas_the_message_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(HeadwaterError, match=r"pip install 'headwater\[pandas\]', or use to_csv"):
        run.to_pandas()


def test_without_a_parquet_library_the_message_says_what_to_install(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(HeadwaterError, match=r"pip install 'headwater\[parquet\]', or use to_csv"):
        run.to_parquet(tmp_path / "a.parquet")


def test_with_duckdb_alone_the_table_goes_through_it(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The library itself is not needed for the tests: what it is asked is, and that the file takes its place whole.
    asked: list[str] = []

    class Connection:
        def __enter__(self) -> Connection:
            return self

        def __exit__(self, *exception: object) -> None: ...

        def execute(self, statement: str) -> None:
            asked.append(statement)
            target = statement.rsplit("TO '", 1)[1].split("' (FORMAT")[0].replace("''", "'")
            Path(target).write_bytes(b"PAR1")

    duckdb = ModuleType("duckdb")
    duckdb.connect = Connection  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "duckdb", duckdb)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "duckdb" or None)
    run.to_parquet(tmp_path / "it's.parquet")
    assert (tmp_path / "it's.parquet").read_bytes() == b"PAR1"
    assert "'step': 'BIGINT'" in asked[0]
    assert "'tensor': 'VARCHAR'" in asked[0]
    assert "'rms': 'DOUBLE'" in asked[0]


def test_json_is_strict_and_holds_every_number(run: Run, tmp_path: Path) -> None:
    run.to_json(tmp_path / "a.json")

    def refuse(constant: str) -> float:
        raise AssertionError(f"bare {constant}")

    data = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert (data["schema"], data["schema_version"], data["name"]) == ("headwater.run", 1, "run")
    assert data["metadata"] == {"model_type": "MLP", "limit": "inf"}
    assert [tensor["name"] for tensor in data["tensors"]] == ["fc1", "fc1.weight", "fc1.bias"]
    assert data["events"][0]["message"] == "<script>"
    assert data["findings"][0]["evidence"][0]["value"] == "inf"
    first, second = data["records"]
    assert first["loss"] == "nan"
    assert second["skipped"] == "amp"
    gradient = first["blocks"][0]
    assert gradient["tensors"] == ["fc1.weight", "fc1.bias"]
    cells = dict(zip(gradient["columns"], gradient["rows"][0], strict=True))
    assert Statistics.from_dict(cells) == Statistics.of([3.0, 4.0])


@pytest.mark.parametrize("method", ["to_csv", "to_json"])
def test_a_place_that_cannot_be_written_is_named_and_nothing_is_left_behind(
    run: Run, tmp_path: Path, method: str
) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        getattr(run, method)(tmp_path / "no such folder" / "a")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="not a regular file"):
        getattr(run, method)(tmp_path / "folder")
    (tmp_path / "old").write_text("old")
    run.close()
    with pytest.raises(HeadwaterError, match="was closed"):
        getattr(run, method)(tmp_path / "old")
    assert (tmp_path / "old").read_text() == "old"
    assert not list(tmp_path.glob(".*"))
