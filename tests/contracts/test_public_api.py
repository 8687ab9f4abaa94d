"""The public names are a promise: one is added here on purpose or not at all."""

from __future__ import annotations

import inspect

import headwater

# Functions and namespaces, in the order of the six verbs; then the records they return; then the errors.
CONTRACT = {
    "measure", "diagnose", "predict", "prescribe", "watch", "sweep",
    "explain_init", "gain", "critical_init", "init", "testing", "open_run", "Grid",
    "Profile", "Statistics", "LayerProfile", "ParameterProfile", "InitializationReport",
    "Diagnosis", "Finding", "Severity", "Verdict", "Forecast", "Detector", "DEFAULT_DETECTORS", "DEFAULT_ALERTS",
    "HeadwaterError",
}  # fmt: skip
LIMIT = 25  # names, as the house rules have it


def test_every_public_name_is_in_the_contract() -> None:
    assert set(headwater.__all__) <= CONTRACT


def test_the_names_are_few_sorted_and_given_once() -> None:
    assert len(headwater.__all__) <= LIMIT
    assert sorted(headwater.__all__) == list(headwater.__all__)
    assert len(set(headwater.__all__)) == len(headwater.__all__)


def test_every_public_name_exists_and_has_a_docstring() -> None:
    for name in headwater.__all__:
        value = getattr(headwater, name)
        if inspect.isfunction(value) or inspect.isclass(value) or inspect.ismodule(value):
            assert inspect.getdoc(value), f"headwater.{name} has no docstring"


def test_no_other_public_name_leaks() -> None:
    leaked = {
        name
        for name, value in vars(headwater).items()
        if not name.startswith("_") and name not in headwater.__all__ and not inspect.ismodule(value)
    }
    assert leaked <= {"annotations", "TYPE_CHECKING", "Any"}


def test_the_version_is_the_one_of_the_distribution() -> None:
    from importlib.metadata import version

    assert headwater.__version__ == version("headwater")
