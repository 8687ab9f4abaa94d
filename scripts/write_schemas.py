"""Write the JSON Schemas that the package ships: ``python scripts/write_schemas.py``."""

from __future__ import annotations

import json
from pathlib import Path

from headwater.records.json_schema import json_schema
from headwater.records.run_summary import RunSummary

FOLDER = Path(__file__).parents[1] / "src/headwater/records/schemas"

if __name__ == "__main__":
    for record in (RunSummary,):
        text = json.dumps(json_schema(record), ensure_ascii=False, indent=1)
        (FOLDER / f"{record.SCHEMA}.json").write_text(text + "\n", encoding="utf-8")
