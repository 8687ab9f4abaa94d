"""``import headwater`` loads torch and the standard library, nothing else."""

from __future__ import annotations

import subprocess
import sys


def _top_level_modules(statement: str) -> set[str]:
    program = f"import sys; {statement}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_headwater_loads_nothing_beyond_torch_and_the_standard_library() -> None:
    torch_alone = _top_level_modules("import torch")
    # Every public name is used, so that names which are resolved on first use are counted as well.
    with_headwater = _top_level_modules(
        "import torch, headwater; [getattr(headwater, name) for name in headwater.__all__]"
    )
    extra = with_headwater - torch_alone - set(sys.stdlib_module_names)
    assert extra <= {"headwater"}, f"import headwater also loads {sorted(extra - {'headwater'})}"
