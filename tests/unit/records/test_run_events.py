"""Events by step, folded."""

from __future__ import annotations

from headwater.records.run_events import fold_events, loss_scale_text
from headwater.records.step import RunEvent


def event(kind: str, step: int | None, message: str = "", group: str = "") -> RunEvent:
    return RunEvent(kind=kind, step=step, time=0.0, message=message, group=group)


def skipped(step: int, group: str = "") -> RunEvent:
    return event("skipped", step, f"step {step} was skipped: the loss scaler found an infinity", group)


def fell(step: int, before: float, now: float) -> RunEvent:
    return event("loss_scale", step, f"the loss scale went from {before:g} to {now:g}")


def told(*events: RunEvent) -> list[tuple[int | None, str]]:
    return [(one.step, one.message) for one in fold_events(events)]


def test_steps_skipped_one_after_the_other_are_one_event() -> None:
    assert told(skipped(0), skipped(1), skipped(2), skipped(7)) == [
        (0, "steps 0–2 were skipped: the loss scaler found an infinity"),
        (7, "step 7 was skipped: the loss scaler found an infinity"),
    ]


def test_steps_of_two_models_are_folded_apart() -> None:
    found = fold_events([skipped(0, "G"), skipped(0, "D"), skipped(1, "G"), skipped(1, "D")])
    assert [(one.group, one.message.partition(" were")[0]) for one in found] == [("G", "steps 0–1"), ("D", "steps 0–1")]


def test_steps_skipped_for_different_reasons_are_not_folded() -> None:
    other = event("skipped", 1, "step 1 was skipped: the gradients were dropped")
    assert len(told(skipped(0), other)) == 2


def test_a_loss_scale_that_falls_again_and_again_is_one_event_in_powers_of_two() -> None:
    # As a run writes them: the fall of step 1 is known only after step 2 has been skipped. 2^24 = 16777216.
    events = (skipped(1), skipped(2), fell(1, 2.0**24, 2.0**23), skipped(3), fell(2, 2.0**23, 2.0**20))
    assert told(*events) == [
        (1, "steps 1–3 were skipped: the loss scaler found an infinity"),
        (1, "the loss scale went from 2^24 to 2^20, in 2 falls up to step 2"),
    ]


def test_a_loss_scale_that_rises_again_is_another_event() -> None:
    assert told(fell(1, 2.0**16, 2.0**15), fell(50, 2.0**15, 2.0**16), fell(90, 1000.0, 500.0)) == [
        (1, "the loss scale went from 2^16 to 2^15"),
        (50, "the loss scale went from 2^15 to 2^16"),
        (90, "the loss scale went from 1000 to 500"),
    ]


def test_events_stand_in_the_order_of_the_steps_within_a_session() -> None:
    events = [
        event("attached", 0), event("notice", 30), event("gap", 10), event("notice", None), event("resumed", 5),
        event("notice", 20), event("notice", 6),
    ]  # fmt: skip
    assert [(one.kind, one.step) for one in fold_events(events)] == [
        ("attached", 0), ("gap", 10), ("notice", None), ("notice", 30), ("resumed", 5), ("notice", 6), ("notice", 20),
    ]  # fmt: skip


def test_a_loss_scale_is_a_power_of_two_only_where_it_is_one() -> None:
    assert [loss_scale_text(v) for v in (65536.0, 128.0, 64.0, 65535.0, 1.5)] == [
        "2^16",
        "2^7",
        "64",
        "6.554e+04",
        "1.5",
    ]
