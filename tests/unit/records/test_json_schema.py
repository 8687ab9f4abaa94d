"""The schema that the package ships says what the JSON of a run holds."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests import runs

from headwater.cli import main
from headwater.records.json_schema import json_schema, shipped_schema
from headwater.records.run_summary import RunSummary, summarize_run

SHIPPED = shipped_schema("headwater.run_summary")
KNOWN = {
    "$schema", "title", "description", "$defs", "$ref", "type", "properties", "required", "additionalProperties",
    "items", "prefixItems", "minItems", "maxItems", "anyOf", "enum", "const",
}  # fmt: skip
TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": int | float,
    "null": type(None),
}  # fmt: skip


def faults(schema: dict[str, Any], value: Any, where: str = "$") -> list[str]:
    """What a validator says, for the words of JSON Schema that are used."""
    assert set(schema) <= KNOWN, f"a word this validator does not know: {set(schema) - KNOWN}"
    found = []
    if "$ref" in schema:
        found += faults(SHIPPED["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, where)
    if "anyOf" in schema and all(faults(option, value, where) for option in schema["anyOf"]):
        found.append(f"{where}: {value!r} is none of what it may be")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where}: {value!r} is not in {schema['enum']}")
    if "const" in schema and value != schema["const"]:
        found.append(f"{where}: {value!r} is not {schema['const']!r}")
    if "type" in schema and (
        not isinstance(value, TYPES[schema["type"]]) or (isinstance(value, bool) and schema["type"] != "boolean")
    ):
        return [*found, f"{where}: {value!r} is no {schema['type']}"]
    if isinstance(value, dict):
        found += [f"{where}: no {name}" for name in schema.get("required", ()) if name not in value]
        for name, entry in value.items():
            inner = schema.get("properties", {}).get(name, schema.get("additionalProperties", {}))
            found += faults(inner, entry, f"{where}.{name}")
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf):
            found.append(f"{where}: {len(value)} entries")
        heads = schema.get("prefixItems", [])
        for i, entry in enumerate(value):
            found += faults(heads[i] if i < len(heads) else schema.get("items", {}), entry, f"{where}[{i}]")
    return found


def test_the_shipped_schema_is_that_of_the_record() -> None:
    assert json_schema(RunSummary) == SHIPPED, "python scripts/write_schemas.py writes it anew"


@pytest.mark.parametrize(
    "run", [runs.healthy(), runs.spiking(), runs.vanishing(), runs.two_models(), runs.hostile(), runs.nothing()]
)
def test_the_json_of_a_run_is_valid(run: runs.FormulaRun) -> None:
    assert faults(SHIPPED, json.loads(summarize_run(run).to_json())) == []


def test_what_the_command_writes_is_valid(tmp_path: Path) -> None:
    folder = runs.write_run(tmp_path / "spiking", runs.spiking())
    result = CliRunner().invoke(main, ["report", str(folder), "--json", str(tmp_path / "run.json")])
    assert result.exit_code == 0
    assert faults(SHIPPED, json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))) == []


def test_numbers_that_json_has_not_are_valid_strings() -> None:
    run = runs.healthy(2, 8)
    run.formulas = {**run.formulas, "gradient": lambda t, s: math.nan if s else 0.0}
    run.loss = lambda step: math.inf
    text = summarize_run(run).to_json()
    assert '"nan"' in text
    assert '"-inf"' in text
    assert '"inf"' in text
    assert faults(SHIPPED, json.loads(text)) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("name",), 3), (("schema",), "headwater.profile"), (("schema_version",), 2), (("recorded_steps",), 1.5),
        (("finished",), 1), (("findings", 0, "severity"), "grave"), (("course", 0, "loss"), "big"),
        (("missing", "fc.weight"), 3), (("spikes", 0, "contributors", 0), ["fc.weight"]),
    ],
)  # fmt: skip
def test_what_the_record_does_not_allow_is_no_valid_json_of_it(path: tuple[Any, ...], value: Any) -> None:
    document = copy.deepcopy(summarize_run(runs.spiking()).to_dict())
    assert faults(SHIPPED, document) == []
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert len(faults(SHIPPED, document)) > 0


def test_an_entry_that_is_left_out_is_noticed() -> None:
    document = summarize_run(runs.healthy()).to_dict()
    del document["weights"][0]["first_log10"]
    assert faults(SHIPPED, document) == ["$.weights[0]: no first_log10"]


def test_every_entry_is_described() -> None:
    for part in (SHIPPED, *SHIPPED["$defs"].values()):
        undescribed = [name for name, entry in part["properties"].items() if "description" not in entry]
        assert undescribed in ([], ["schema", "schema_version"]), part["description"]
