"""What a type checker sees of the public API; mypy reads this file, nothing runs it."""

from __future__ import annotations

from typing import assert_type

import headwater
from headwater.records import LayerProfile, ParameterProfile, Statistics


def a_profile_is_typed(profile: headwater.Profile) -> None:
    assert_type(profile.layer("fc1"), LayerProfile)
    assert_type(profile.layers, tuple[LayerProfile, ...])
    assert_type(profile.parameter("fc1.weight"), ParameterProfile)
    assert_type(profile.gradients("rms"), dict[str, float])
    assert_type(profile.layer("fc1").gradient, Statistics | None)
    assert_type(profile.layer("fc1").activation.rms, float)
    assert_type(profile.through_time("lstm"), tuple[float, ...])
    assert_type(profile.to_json(), str)
    assert_type(headwater.Profile.from_json("{}"), headwater.Profile)
    assert_type(profile.loss, float)
