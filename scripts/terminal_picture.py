"""Draw docs/images/check.svg: what ``headwater check`` prints for a small network, from a real run.

python scripts/terminal_picture.py

The picture holds the output from its first line to the end of the gradient budget; the table of layers that follows is left
out, and the last line says so.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import torch
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

import headwater
from headwater.cli.target import load_target
from headwater.reports import to_rich

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "check.svg"
TARGET = "examples/models.py:sigmoid_mlp"
WIDTH = 98
END = re.compile(r"\d+ layers\s*$")
"""The heading of the table of layers: the first line that is left out."""
# rich's template loads a font from the network; the reader's own monospace font does.
OFFLINE = re.sub(r"@font-face\s*\{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def terminal(*, record: bool) -> Console:
    """A terminal that shows nothing: the same for laying the report out and for drawing it.

    Args:
        record: whether it keeps what is printed.
    """
    return Console(
        record=record,
        width=WIDTH,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
    )


def report() -> str:
    """What the command prints, with its colours: the same seed and the same calls as the command's."""
    torch.manual_seed(0)
    loaded = load_target(str(ROOT / TARGET))
    diagnosis = headwater.diagnose(loaded.model, loaded.inputs, loaded.targets, loaded.loss_fn)
    with (console := terminal(record=False)).capture() as printed:
        console.print(to_rich(diagnosis, ascii_only=False))
    return printed.get()


def main() -> None:
    """Diagnose the network as the command does, and export the terminal."""
    lines = Text.from_ansi(report()).split("\n")
    cut = next((i for i, line in enumerate(lines) if END.match(line.plain)), None)
    if cut is None:
        raise SystemExit(f"the report has no line like {END.pattern!r}: where does the picture end now?")
    console = terminal(record=True)
    console.print(Text(f"$ headwater check {TARGET}", style="bold"))
    console.print(Text("\n").join(lines[:cut]))
    console.print(Text(f"… and the table of layers ({len(lines) - cut} lines)", style="dim"))
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    svg = console.export_svg(title="headwater", code_format=OFFLINE, unique_id="headwater-check")
    PICTURE.write_text(svg, encoding="utf-8")
    print(f"{PICTURE.relative_to(ROOT)}: {len(svg) / 1024:.0f} KB")


if __name__ == "__main__":
    main()
