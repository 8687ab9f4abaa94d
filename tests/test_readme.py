"""The README's Python example runs, and what it links to exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import headwater

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_python_examples_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, training = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(first.replace(".show()", ""), "README.md", "exec"), names)  # show() would open a browser
    assert "Gradient profile of Sequential" in capsys.readouterr().out
    model = names["nn"].Sequential(names["nn"].Linear(64, 4))
    names |= {
        "model": model,
        "optimizer": names["torch"].optim.SGD(model.parameters(), lr=0.1),
        "batches": [(names["x"], names["torch"].zeros(32, dtype=names["torch"].long))] * 3,
    }
    exec(compile(training, "README.md", "exec"), names)
    assert headwater.open_run("runs/a").steps == (0, 1, 2)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    for link in links:
        if "://" not in link:
            assert (page.parent / link).exists(), f"{page.relative_to(ROOT)} links to {link}"
