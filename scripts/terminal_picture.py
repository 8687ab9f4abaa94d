"""Draw docs/images/check.svg: what ``headwater check`` prints for a small network, from a real run.

python scripts/terminal_picture.py
"""

from __future__ import annotations

import io
import re
import runpy
from pathlib import Path

import torch
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

import headwater
from headwater.reports import to_rich

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "check.svg"
COMMAND = "headwater check examples/models.py:sigmoid_mlp"
WIDTH = 96
# rich's template loads a font from the network; the reader's own monospace font does.
OFFLINE = re.sub(r"@font-face\s*\{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def main() -> None:
    """Measure the network as the command does, and export the terminal."""
    torch.manual_seed(0)
    make = runpy.run_path(str(ROOT / "examples" / "models.py"))["sigmoid_mlp"]
    profile = headwater.measure(*make())
    console = Console(
        record=True,
        width=WIDTH,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
    )
    console.print(Text(f"$ {COMMAND}", style="bold"))
    console.print(to_rich(profile, ascii_only=False))
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    svg = console.export_svg(title="headwater", code_format=OFFLINE, unique_id="headwater-check")
    PICTURE.write_text(svg, encoding="utf-8")
    print(f"{PICTURE.relative_to(ROOT)}: {len(svg) / 1024:.0f} KB")


if __name__ == "__main__":
    main()
