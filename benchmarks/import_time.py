"""What ``import headwater`` costs beyond ``import torch``; the goal is under 200 ms.

In a fresh interpreter torch is imported first, then headwater, then every public name is used (names may be resolved
on first use); the clock runs from the import of headwater. One interpreter is started first, to warm the file cache.

    python benchmarks/import_time.py [--repeats 7]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

PROGRAM = """
import json, time
start = time.perf_counter(); import torch; torch_done = time.perf_counter()
import headwater; imported = time.perf_counter()
for name in headwater.__all__: getattr(headwater, name)
used = time.perf_counter()
print(json.dumps([torch_done - start, imported - torch_done, used - torch_done]))
"""
COMMAND_LINE = """
import json, time
start = time.perf_counter(); import headwater.cli
print(json.dumps([time.perf_counter() - start]))
"""


def _seconds(program: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    values: list[float] = json.loads(done.stdout)
    return values


def main() -> None:
    """Print one line per part, in milliseconds."""
    parser = argparse.ArgumentParser(description="What importing headwater costs beyond torch")
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    _seconds(PROGRAM)
    rows = [_seconds(PROGRAM) + _seconds(COMMAND_LINE) for _ in range(repeats)]
    names = (
        "import torch",
        "import headwater, after torch",
        "the same, and every public name used",
        "import headwater.cli alone",
    )
    for name, values in zip(names, zip(*rows, strict=True), strict=True):
        print(f"{name:<38} median {1e3 * statistics.median(values):7.0f} ms   largest {1e3 * max(values):7.0f} ms")


if __name__ == "__main__":
    main()
