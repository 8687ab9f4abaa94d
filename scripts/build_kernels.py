"""Compile the statistics kernels; also the build hook that does so when the package is built or installed.

``python scripts/build_kernels.py`` compiles into the source tree. Without a C compiler, or where it fails, the package
is built all the same, as a pure one: headwater then computes its statistics in plain torch, and says so in
``headwater.stats.kernels.status()``. ``CC`` names the compiler and its options, as usual.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path("src/headwater/stats/kernels")
COMPILED = "_moments.so"
SOURCES = ("moments.c", "moments_targets.h", "moments_lanes.h", "units.h")

# No -march: the source holds its variants for several instruction sets and picks one when it runs.
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")


def compiler() -> list[str] | None:
    """The C compiler's command, or None where there is none (a Windows machine among them: no variant for it)."""
    if sys.platform == "win32":
        return None
    named = shlex.split(os.environ.get("CC", ""))
    if named:
        return named
    found = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    return [found] if found else None


def compile_kernels(folder: Path, output: Path) -> str | None:
    """Compile the sources in a folder.

    Args:
        folder: where they lie.
        output: the shared object to write; only ever replaced by a whole one.

    Returns:
        None, or in one sentence why there is no shared object. An older one is removed then.
    """
    command = compiler()
    if command is None:
        output.unlink(missing_ok=True)
        return "no C compiler (cc, gcc or clang) was found"
    digest = hashlib.sha256(b"".join((folder / name).read_bytes() for name in SOURCES)).hexdigest()[:16]
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / COMPILED
        arguments = [*FLAGS, f'-DHEADWATER_SOURCE="{digest}"', str(folder / SOURCES[0]), "-o", str(made), "-lm"]
        try:
            run = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300, check=False)
            problem = run.stderr.strip() if run.returncode else None
        except (OSError, subprocess.TimeoutExpired) as error:
            problem = str(error)
        if problem is not None:
            output.unlink(missing_ok=True)
            return f"{command[0]} failed: {problem[-2000:]}"
        # Beside the target first, so that a running process never sees half a file.
        beside = output.with_suffix(f".{os.getpid()}")
        shutil.copyfile(made, beside)
        beside.replace(output)
    return None


def main() -> None:
    """Compile into the source tree and say what happened."""
    root = Path(__file__).resolve().parent.parent
    problem = compile_kernels(root / FOLDER, root / FOLDER / COMPILED)
    print(
        f"statistics kernels: {FOLDER / COMPILED}"
        if problem is None
        else f"statistics kernels: not compiled, plain torch is used instead; {problem}"
    )


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a program: hatchling is there only while a package is built
    pass
else:

    class BuildKernels(BuildHookInterface[Any]):
        """Compiles the kernels into the source tree, and marks a wheel that holds them with its platform."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Compile before the wheel is put together.

            Args:
                version: ``standard`` or ``editable``.
                build_data: what hatchling does with the wheel; changed in place.
            """
            from packaging.tags import sys_tags

            folder = Path(self.root) / FOLDER
            problem = compile_kernels(folder, folder / COMPILED)
            if problem is not None:
                self.app.display_warning(f"headwater {version}: statistics in plain torch; {problem}")
                return
            build_data["artifacts"].append(str(FOLDER / COMPILED))
            build_data["pure_python"] = False
            platform = next(t.platform for t in sys_tags() if "linux_" not in t.platform or t.platform[:5] == "linux")
            build_data["tag"] = f"py3-none-{platform}"


if __name__ == "__main__":
    main()
