"""Findings and the short form of many names."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.records import Evidence, Finding, Severity, Verdict, fold_names


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        ([], []),
        (["head"], ["head"]),
        (["blocks.3", "blocks.4"], ["blocks.3", "blocks.4"]),  # two are no range
        (["blocks.3", "blocks.4", "blocks.5", "head"], ["blocks.3–5", "head"]),
        (["0", "2", "4", "6"], ["0, 2 … 6"]),
        (["h.3.mlp.fc1", "h.4.mlp.fc1", "h.5.mlp.fc1"], ["h.3–5.mlp.fc1"]),
        (["h.3.fc1", "h.3.fc2", "h.3.fc3"], ["h.3.fc1–3"]),  # the number that changes is the one that folds
        (["a.1", "a.2", "a.3", "b.1", "b.2", "b.3"], ["a.1–3", "b.1–3"]),
        (["l.1", "l.2", "l.3", "l.5"], ["l.1–3", "l.5"]),
        (["l.3", "l.2", "l.1"], ["l.3", "l.2", "l.1"]),  # a range runs upwards
        (["l.1", "l.1", "l.2", "l.3"], ["l.1–3"]),  # named twice, listed once
        (["l.9", "l.10", "l.11"], ["l.9–11"]),  # across a digit more
        (["a1", "a2x", "a3"], ["a1", "a2x", "a3"]),
    ],
)
def test_ranges_fold(names: list[str], folded: list[str]) -> None:
    assert fold_names(names) == folded


def test_a_long_list_ends_with_how_many_more() -> None:
    assert fold_names(list("abcdefghij"), limit=3) == ["a", "b", "c", "and 7 more"]


def _unfolded(text: str) -> list[str]:
    """The slow way back, for names that hold one number."""
    if "–" in text:
        head, last = text.split("–")
        stem = head.rstrip("0123456789")
        return [f"{stem}{i}" for i in range(int(head[len(stem) :]), int(last) + 1)]
    if "…" in text:
        numbers, last = text.split(" … ")
        first, second = numbers.split(", ")
        stem = first.rstrip("0123456789")
        low = int(first[len(stem) :])
        return [f"{stem}{i}" for i in range(low, int(last) + 1, int(second) - low)]
    return [text]


@given(st.lists(st.builds("{}.{}".format, st.sampled_from("ab"), st.integers(0, 12)), max_size=30))
def test_folding_loses_no_name_and_lists_ranges_where_they_start(names: list[str]) -> None:
    folded = fold_names(names, limit=1000)
    unfolded = [_unfolded(text) for text in folded]
    assert sorted(itertools.chain.from_iterable(unfolded)) == sorted(set(names))
    given_order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    firsts = [given_order[range_[0]] for range_ in unfolded]
    assert firsts == sorted(firsts)


def test_severities_are_ranked() -> None:
    assert Severity.INFO.rank < Severity.WARNING.rank < Severity.CRITICAL.rank
    assert Severity("critical") is Severity.CRITICAL


def test_verdicts_are_the_promised_words() -> None:
    assert [v.value for v in Verdict] == [
        "healthy", "vanishing", "exploding", "dead_units", "saturated", "symmetric", "nan", "zero_gradient",
        "vanishing_in_time", "exploding_in_time",
    ]  # fmt: skip
    assert Verdict.VANISHING == "vanishing"


def test_evidence_says_name_number_unit_and_what_it_was_compared_with() -> None:
    assert str(Evidence("change", -16.234, "decades", "limit -3")) == "change -16.23 decades (limit -3)"
    assert str(Evidence("layers", 19)) == "layers 19"
    assert isinstance(Evidence("layers", 19).value, float)


def test_a_finding_reads_as_one_line() -> None:
    finding = Finding(
        code="HW999", defect="cold layers", severity=Severity.WARNING, where=("b.1", "b.2", "b.3"),
        cause="It is winter.", advice="Wait.",
    )  # fmt: skip
    assert str(finding) == "HW999 warning: cold layers at b.1–3. It is winter. Wait."
