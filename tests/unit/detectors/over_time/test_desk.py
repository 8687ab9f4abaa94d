"""Patience, de-duplication, actions, groups, state: what every alert gets from the desk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.detectors.over_time.synthetic import alarms, record

from headwater.detectors.over_time import DEFAULT_ALERTS, AlertDesk, Memory, Moment, with_actions
from headwater.errors import InputError, RecordError
from headwater.records import Finding, Severity


@dataclass(frozen=True)
class LossAbove:
    """Finds a loss above a limit; the group's name is where."""

    limit: float = 1.0
    code: str = "X1"
    patience: int = 1
    action: object = "warn"
    per_place: bool = False
    keeps_flight_record: bool = False

    def __call__(self, moment: Moment, memory: Memory) -> list[Finding] | None:
        loss = moment.record.loss
        if loss is None:
            return None
        memory["seen"] = memory.get("seen", 0) + 1
        where = (f"layer{int(loss)}",)
        found = Finding(code=self.code, defect="loss", severity=Severity.WARNING, where=where, cause="c.", advice="a.")
        return [found] if loss > self.limit else []


@dataclass(frozen=True)
class Crashes:
    code: str = "X9"
    patience: int = 3
    action: object = "stop"
    calls: list[int] = field(default_factory=list)

    def __call__(self, moment: Moment, memory: Memory) -> list[Finding]:
        raise ZeroDivisionError("no units")


def losses(*values: float | None, **fields: object) -> list[object]:
    return [record(step, loss=value, **fields) for step, value in enumerate(values)]


def steps(found: list[Finding]) -> list[int | None]:
    return [f.step for f in found]


# ------------------------------------------------------------ patience and de-duplication


def test_one_blip_is_no_alarm_with_patience_three_and_three_in_a_row_are_one() -> None:
    assert alarms(losses(0, 2, 0, 2, 2, 0), LossAbove(patience=3)) == []
    found = alarms(losses(0, 2, 0, 2, 2, 2, 2, 2), LossAbove(patience=3))
    assert steps(found) == [3]  # one alarm, with the step at which the streak began


def test_a_step_that_cannot_be_judged_neither_ends_nor_continues_a_streak() -> None:
    assert steps(alarms(losses(2, None, 2, None), LossAbove(patience=2))) == [0]
    assert alarms(losses(2, None, None, 0), LossAbove(patience=2)) == []


def test_an_alarm_that_goes_on_is_said_once_and_again_only_after_a_quiet_time() -> None:
    desk = AlertDesk([LossAbove()], quiet=3)
    # Away for two steps: the same alarm. Away for three: a new one.
    found = alarms(losses(2, 2, 0, 0, 2, 0, 0, 0, 2), desk=desk)
    assert steps(found) == [0, 8]


def test_decisions_of_an_alarm_that_goes_on_are_there_and_not_new() -> None:
    desk = AlertDesk([LossAbove()])
    decisions = [d for r in losses(2, 2, 2) for d in desk.consider(r)]
    assert [d.is_new for d in decisions] == [True, False, False]
    assert {d.finding.step for d in decisions} == {0}


def test_an_alert_per_place_grows_at_a_new_place_only() -> None:
    desk = AlertDesk([LossAbove(per_place=True)])
    found = [d for r in losses(2, 3, 2, 3, 4) for d in desk.consider(r) if d.is_new]
    assert [(d.grows, d.finding.step, d.finding.where) for d in found] == [
        (False, 0, ("layer2",)),
        (True, 0, ("layer3", "layer2")),
        (True, 0, ("layer4", "layer2", "layer3")),
    ]
    assert len(alarms(losses(2, 3, 2, 3, 4), LossAbove())) == 1


def test_a_new_place_long_after_the_alarm_is_said_as_another_one() -> None:
    desk = AlertDesk([LossAbove(per_place=True)], quiet=3)
    found = [d for r in losses(2, 2, 2, 3, 2, 2, 2, 4) for d in desk.consider(r) if d.is_new]
    # Three judged steps after step 0 it still grows; four after step 3 it does not.
    assert [(d.grows, d.finding.step) for d in found] == [(False, 0), (True, 0), (False, 7)]


@pytest.mark.parametrize("action", ["raise", "stop", print])
def test_what_ends_the_training_or_calls_a_function_does_so_at_each_new_place(action: object) -> None:
    desk = AlertDesk([LossAbove(per_place=True, action=action)])
    found = [d for r in losses(2, 3) for d in desk.consider(r) if d.is_new]
    assert [(d.grows, d.finding.step) for d in found] == [(False, 0), (False, 1)]


def test_a_warning_is_said_at_most_limit_times_and_the_last_one_says_so() -> None:
    flicker = losses(*(2 if step % 2 else 0 for step in range(40)))
    found = alarms(flicker, desk=AlertDesk([LossAbove()], quiet=1, limit=3))
    assert len(found) == 3
    assert "number 3, the last one said" in found[-1].cause
    stopping = alarms(flicker, desk=AlertDesk([LossAbove(action="stop")], quiet=1, limit=3))
    assert len(stopping) == 20  # what stops is never silenced


def test_two_desks_with_the_same_alerts_know_nothing_of_each_other() -> None:
    alert = LossAbove()
    assert steps(alarms(losses(2), alert)) == steps(alarms(losses(2), alert)) == [0]


def test_groups_have_their_own_memory_and_alarms() -> None:
    desk = AlertDesk([LossAbove(patience=2)])
    both = [r for step in range(3) for r in (record(step, loss=2, group="G"), record(step, loss=0, group="D"))]
    decisions = [d for r in both for d in desk.consider(r) if d.is_new]
    assert [(d.group, d.finding.step) for d in decisions] == [("G", 0)]
    assert desk.state_dict()["memories"]["X1"] == {"G": {"seen": 3}, "D": {"seen": 3}}


def test_micro_batches_are_left_to_the_row_of_their_step() -> None:
    desk = AlertDesk([LossAbove()])
    assert desk.consider(record(0, loss=2, micro=1)) == []
    assert desk.state_dict()["memories"] == {}


# ------------------------------------------------------------ actions


def test_the_action_is_the_alerts_and_a_function_is_handed_through() -> None:
    called: list[Finding] = []
    for action in ("warn", "raise", "stop", called.append):
        desk = AlertDesk([LossAbove(action=action)])
        assert desk.consider(record(0, loss=2))[0].action is action
        assert desk.blocking == (action in ("raise", "stop"))
    assert called == []  # taking the action is the caller's part


@pytest.mark.parametrize(
    ("change", "message"),
    [({"action": "explode"}, "action should be"), ({"patience": 0}, "patience"), ({"patience": True}, "patience")],
)
def test_a_policy_that_cannot_be_is_refused(change: Mapping[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AlertDesk([LossAbove(**change)])


def test_two_alerts_with_one_code_are_refused() -> None:
    with pytest.raises(InputError, match="share the code X1"):
        AlertDesk([LossAbove(), LossAbove(limit=2)])


@pytest.mark.parametrize("name", ["flight_steps", "quiet", "limit"])
def test_numbers_of_the_desk_are_positive(name: str) -> None:
    with pytest.raises(InputError, match=name):
        AlertDesk([], **{name: 0})


def test_with_actions_changes_those_named_and_no_other() -> None:
    changed = with_actions(DEFAULT_ALERTS, {"HW601": "stop"}, patience=4)
    assert [(a.action, a.patience) for a in changed if a.code == "HW601"] == [("stop", 4)]
    assert changed[1:] == DEFAULT_ALERTS[1:]
    with pytest.raises(InputError, match="no alert has the code HW999"):
        with_actions(DEFAULT_ALERTS, {"HW999": "stop"})


def test_an_alert_that_crashes_is_one_visible_finding_and_hides_no_other() -> None:
    desk = AlertDesk([Crashes(), LossAbove()])
    decisions = desk.consider(record(0, loss=2))
    assert [(d.finding.code, d.finding.defect) for d in decisions] == [("X9", "alert failed"), ("X1", "loss")]
    assert "ZeroDivisionError: no units" in decisions[0].finding.cause
    assert [d.is_new for d in desk.consider(record(1, loss=2))] == [False, False]


# ------------------------------------------------------------ flight recorder


def test_a_new_alarm_carries_the_last_records_of_its_group_oldest_first() -> None:
    desk = AlertDesk([LossAbove(keeps_flight_record=True)], flight_steps=3)
    for step in range(5):
        desk.consider(record(step, loss=0))
        desk.consider(record(step, loss=0, group="other"))
    (decision,) = desk.consider(record(5, loss=2))
    assert [r.step for r in decision.flight] == [3, 4, 5]
    assert {r.group for r in decision.flight} == {""}
    (again,) = desk.consider(record(6, loss=2))
    assert again.flight == ()


# ------------------------------------------------------------ state


@given(st.lists(st.sampled_from([None, 0.0, 2.0, 3.0]), max_size=60), st.integers(0, 60), st.integers(1, 4))
def test_a_resumed_desk_gives_the_alarms_of_one_that_never_stopped(
    values: list[float | None], cut: int, patience: int
) -> None:
    def new() -> AlertDesk:
        return AlertDesk([LossAbove(patience=patience, per_place=True)], quiet=3, limit=5)

    records = losses(*values)
    whole = alarms(records, desk=new())
    first, second = new(), new()
    before = alarms(records[:cut], desk=first)
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert before + alarms(records[cut:], desk=second) == whole


def test_the_saved_state_is_a_copy() -> None:
    desk = AlertDesk([LossAbove()])
    desk.consider(record(0, loss=2))
    state = desk.state_dict()
    desk.consider(record(1, loss=2))
    assert state["memories"]["X1"][""] == {"seen": 1}


def test_state_of_alerts_that_are_gone_is_ignored_and_new_ones_start_afresh() -> None:
    old = AlertDesk([LossAbove()])
    old.consider(record(0, loss=2))
    new = AlertDesk([LossAbove(code="X2")])
    new.load_state_dict(old.state_dict())
    assert steps(alarms(losses(2), desk=new)) == [0]


@pytest.mark.parametrize("state", [{}, [], {"version": 99, "memories": {}, "alarms": {}}])
def test_foreign_or_newer_state_is_refused(state: object) -> None:
    with pytest.raises(RecordError):
        AlertDesk([]).load_state_dict(state)
