"""The kernels' build: with a compiler, with one that fails, and without any."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch

from headwater.stats import kernels, statistics_from_rows, summarize

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_kernels.py"
SOURCES = Path(kernels.__file__).parent


@pytest.fixture
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_kernels", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_build_and_the_loader_mean_the_same_sources(build: ModuleType) -> None:
    assert build.SOURCES == kernels.SOURCES
    assert kernels.COMPILED.name == build.COMPILED
    assert (SCRIPT.parents[1] / build.FOLDER).resolve() == SOURCES.resolve()
    assert {p.name for p in SOURCES.iterdir() if p.suffix in (".c", ".h")} == set(kernels.SOURCES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cc", "gcc", "clang"])
def test_each_compiler_builds_kernels_that_agree_with_the_plain_path(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if shutil.which(name) is None:
        return  # whichever there is
    monkeypatch.setenv("CC", name)
    output = tmp_path / "_moments.so"
    assert build.compile_kernels(SOURCES, output) is None
    x = torch.cat([torch.randn(5000), torch.zeros(3), torch.tensor([float("nan")])])
    for target in kernels.TARGETS:
        try:
            compiled = kernels.Kernels(output, target)
        except ValueError:  # not on this processor
            continue
        assert compiled.source == kernels.source_digest()
        entry = kernels.entry(x)
        assert entry is not None
        (s,) = statistics_from_rows(compiled.moments(entry))
        assert s.to_dict() == pytest.approx(summarize(x).to_dict(), rel=1e-5)


@pytest.mark.parametrize(
    ("command", "reason"), [("false", "false failed"), ("no-such-compiler -O2", "no-such-compiler")]
)
def test_a_compiler_that_fails_leaves_a_pure_package_and_says_so(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, reason: str
) -> None:
    monkeypatch.setenv("CC", command)
    older = tmp_path / "_moments.so"
    older.write_bytes(b"compiled from what the sources were before")
    problem = build.compile_kernels(SOURCES, older)
    assert reason in problem
    assert not older.exists()


def test_no_compiler_leaves_a_pure_package_and_says_so(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no C compiler" in build.compile_kernels(SOURCES, tmp_path / "_moments.so")
