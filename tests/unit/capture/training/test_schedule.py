from __future__ import annotations

from typing import Any

import pytest

from headwater.capture.training.schedule import GRACE_SECONDS, Schedule
from headwater.errors import InputError


def recorded(schedule: Schedule, steps: int) -> list[int]:
    return [i for i in range(steps) if schedule.records(i)]


def test_the_early_steps_and_every_tenth_are_recorded() -> None:
    assert recorded(Schedule(), 41) == [0, 1, 2, 4, 8, 10, 20, 30, 40]


def test_start_and_stop_limit_what_is_recorded_and_the_early_steps_count_from_start() -> None:
    assert recorded(Schedule(every=10, start=15, stop=31), 60) == [15, 16, 17, 19, 20, 23, 30]


def test_layers_are_sampled_early_and_on_every_tenth_of_the_recorded_steps() -> None:
    schedule = Schedule()
    assert [i for i in range(301) if schedule.samples(i)] == [0, 1, 2, 4, 8, 100, 200, 300]
    assert [i for i in range(41) if Schedule(activations="recorded").samples(i)] == recorded(schedule, 41)
    assert not any(Schedule(activations=None).samples(i) for i in range(41))
    assert [i for i in range(301) if Schedule(activations=None).reads_values(i)] == [0, 1, 2, 4, 8, 100, 200, 300]


def test_the_interval_doubles_above_the_limit_and_relaxes_below_half_of_it() -> None:
    schedule = Schedule(every=5, max_overhead=0.01)
    assert not schedule.adapt(GRACE_SECONDS, 0.0)  # a first second is free
    assert schedule.adapt(GRACE_SECONDS + 1.1, 100.0)  # allowed: 1 s of 100 s and the first one
    assert [i for i in range(9, 41) if schedule.records(i)] == [10, 20, 30, 40]
    assert not schedule.adapt(GRACE_SECONDS + 0.9, 100.0)
    assert schedule.adapt(1.0, 200.0)  # half of 1 + 2 s is 1.5 s
    assert schedule.stretch == 1
    assert not Schedule(max_overhead=None).adapt(1e9, 1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"every": 0},
        {"every": 2.5},
        {"start": -1},
        {"start": 5, "stop": 3},
        {"activations": "all"},
        {"max_overhead": 0.0},
    ],
)
def test_a_schedule_without_meaning_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Schedule(**wrong)


def test_a_resumed_schedule_goes_on_with_its_interval() -> None:
    schedule, other = Schedule(stretch=4), Schedule()
    other.load_state_dict(schedule.state_dict())
    assert other.stretch == 4


@pytest.mark.parametrize("schedule", [Schedule(), Schedule(every=3, start=7, stop=40), Schedule(every=4, stretch=2)])
def test_the_following_recorded_step_is_the_next_one_of_the_list(schedule: Schedule) -> None:
    steps = recorded(schedule, 200)
    for step in range(100):
        later = [i for i in steps if i > step]
        assert schedule.following(step) == (later[0] if later else 2**62)
