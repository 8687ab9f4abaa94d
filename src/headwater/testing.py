"""Gradient checks for test suites: a function for any framework, and a pytest plugin.

As a pytest plugin (``pytest -p headwater.testing``) it brings the fixture ``gradients_flow`` and marks the tests that use
it ``gradients``. Importing this module loads the standard library alone; torch is loaded when a check runs.
PYTEST_DONT_REWRITE: there is no assertion here to rewrite, and the module may be imported before pytest looks at it.
"""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from headwater.records import Diagnosis, Finding, Severity

__all__ = ["assert_gradients_flow"]

_NOT_PROVED = (
    "What this check cannot say: whether training converges or generalises. It looks at one batch and at the weights as "
    "they are now."
)


def assert_gradients_flow(
    model: nn.Module,
    inputs: Any = None,
    targets: Any = None,
    loss_fn: Callable[..., Tensor] | None = None,
    *,
    loss: Callable[[nn.Module], Tensor] | None = None,
    allow: str | Iterable[str] = (),
    seeds: int = 3,
    fail_on: str = "critical",
) -> Diagnosis:
    """Fail unless the gradient reaches every layer of a model that is meant to learn.

    The model is diagnosed once per seed. Without a loss the output is multiplied with another random cotangent each time,
    so that no symmetry can cancel the gradient by accident (the sum of a BatchNorm's output has none); with one, the seed
    is that of dropout and of other random layers. A finding counts when more than half of the seeds show it; a NaN or an
    infinity counts when one does. The model and the global random state are left as they were.

    Args:
        model: any module, in the mode it is tested in.
        inputs: as for :func:`headwater.measure`.
        targets: as for :func:`headwater.measure`.
        loss_fn: as for :func:`headwater.measure`.
        loss: as for :func:`headwater.measure`.
        allow: what is meant to be so: globs over names of layers and parameters (``"aux.*"``; the name of a module
            covers what is inside), detector codes (``"HW302"``), defects or verdicts (``"dead_units"``).
        seeds: how many diagnoses, at least 1.
        fail_on: ``critical``, ``warning`` or ``info``.

    Returns:
        The diagnosis of the first seed, for further assertions.

    Raises:
        InputError: an argument is wrong, or what :func:`headwater.measure` raises for it.
        UnhealthyError: an ``AssertionError`` whose text holds the findings; also when no parameter receives a gradient.

    Example:
        >>> import torch
        >>> from headwater.testing import assert_gradients_flow
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        >>> assert_gradients_flow(net, torch.randn(32, 8)).verdict.value
        'healthy'
    """
    __tracebackhide__ = True
    from headwater.errors import InputError, NothingObservedError, UnhealthyError
    from headwater.records import Severity

    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise InputError(f"seeds should be a positive integer, got {seeds!r}")
    if fail_on not in list(Severity):
        raise InputError(f"fail_on is {fail_on!r}; it can be {', '.join(repr(s.value) for s in Severity)}")
    patterns = (allow,) if isinstance(allow, str) else tuple(allow)
    try:
        diagnoses = [_diagnosed(model, inputs, targets, loss_fn, loss, seed) for seed in range(seeds)]
    except NothingObservedError as error:
        raise UnhealthyError(f"{type(model).__name__}: no parameter receives a gradient. {error}") from error
    bad = _lasting([_refused(d, patterns, Severity(fail_on)) for d in diagnoses])
    if bad:
        raise UnhealthyError(_message(diagnoses, bad), tuple(finding for finding, _ in bad))
    return diagnoses[0]


def _diagnosed(
    model: nn.Module, inputs: Any, targets: Any, loss_fn: Any, loss: Callable[[nn.Module], Tensor] | None, seed: int
) -> Diagnosis:
    import torch

    from headwater._diagnose import diagnose
    from headwater.capture.loss_run import probe_seed

    parameters = model.parameters() if isinstance(model, torch.nn.Module) else ()
    devices = sorted({p.device.index or 0 for p in parameters if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), probe_seed(seed):
        torch.manual_seed(seed)
        return diagnose(model, inputs, targets, loss_fn, loss=loss)


def _refused(diagnosis: Diagnosis, allow: tuple[str, ...], limit: Severity) -> list[Finding]:
    """The findings that are severe enough and not allowed; of those allowed in part, the other places."""
    severe = (finding for finding in diagnosis.findings if finding.severity.rank >= limit.rank)
    return [left for finding in severe if (left := _without_allowed(finding, allow)) is not None]


def _without_allowed(finding: Finding, allow: tuple[str, ...]) -> Finding | None:
    verdict = finding.verdict.value if finding.verdict is not None else ""
    if any(_matches(word, pattern) for word in (finding.code, finding.defect, verdict) for pattern in allow):
        return None
    where = tuple(
        name
        for name in finding.where
        if not any(_matches(name, pattern) or _matches(name, f"{pattern}.*") for pattern in allow)
    )
    return None if finding.where and not where else replace(finding, where=where)


def _matches(name: str, pattern: str) -> bool:
    # Equality first: names such as "rnn[1]" hold what a glob would read as a set of characters.
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _lasting(runs: list[list[Finding]]) -> list[tuple[Finding, int]]:
    """What more than half of the runs show (for a NaN: what one shows), with the number of runs; worst first."""
    seen: dict[tuple[str, str], list[Finding]] = {}
    for run in runs:
        for key in dict.fromkeys((finding.code, finding.defect) for finding in run):
            seen.setdefault(key, []).append(next(f for f in run if (f.code, f.defect) == key))
    lasting = [
        (found[0], len(found))
        for found in seen.values()
        if 2 * len(found) > len(runs) or (found[0].verdict is not None and found[0].verdict.value == "nan")
    ]
    return sorted(lasting, key=lambda pair: (pair[0].symptom_of is not None, -pair[0].severity.rank))


def _message(diagnoses: list[Diagnosis], bad: list[tuple[Finding, int]]) -> str:
    first = diagnoses[0]
    verdicts = ", ".join(dict.fromkeys(d.verdict.value for d in diagnoses))
    lines = [f"gradients do not flow in {first.profile.model_type}: {verdicts}"]
    for finding, times in bad:
        lines.append(f"  {finding}")
        lines += [f"    {item}" for item in finding.evidence]
        if finding.symptom_of:
            lines.append(f"    explained by {finding.symptom_of}")
        lines.append(f"    seen with {times} of {len(diagnoses)} seeds")
    finding = bad[0][0]
    example = finding.where[0] if finding.where else finding.code
    lines.append(f'If this is meant to be so: allow=["{example}"] or allow=["{finding.code}"].')
    return "\n".join([*lines, _NOT_PROVED])


# A plugin is imported by pytest, so pytest is there already; anybody else needs neither pytest nor the fixture.
if "pytest" in sys.modules:
    import pytest

    __all__ += ["gradients_flow"]

    @pytest.fixture
    def gradients_flow() -> Callable[..., Diagnosis]:
        """The function :func:`assert_gradients_flow`; a test that uses it is marked ``gradients``."""
        return assert_gradients_flow

    def pytest_configure(config: pytest.Config) -> None:
        """Register the marker, so that ``--strict-markers`` accepts it."""
        config.addinivalue_line("markers", "gradients: checks that gradients reach every layer (headwater)")

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
        """Mark the tests that use the fixture, before ``-m`` selects."""
        for item in items:
            if "gradients_flow" in getattr(item, "fixturenames", ()):
                item.add_marker("gradients")
