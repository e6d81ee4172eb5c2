"""A listener receives every step, and only while it listens."""

from __future__ import annotations

import pytest

from dec_export.progress import reporting, step, tell


def test_a_listener_hears_of_steps_and_details() -> None:
    heard: list[tuple[str, bool]] = []
    with reporting(lambda name, seconds: heard.append((name, seconds is not None))):
        tell("before")
        with step("work"):
            tell("1/2")
        tell("after")
    tell("unheard")
    assert heard == [("before", False), ("work", False), ("work: 1/2", False), ("work", True), ("after", False)]


def test_a_step_that_raises_has_no_end() -> None:
    heard: list[tuple[str, float | None]] = []
    with reporting(lambda name, seconds: heard.append((name, seconds))):
        with pytest.raises(ValueError, match="x"), step("work"):
            raise ValueError("x")
        tell("after")
    assert heard == [("work", None), ("after", None)]


def test_none_silences_a_part() -> None:
    heard: list[str] = []
    with reporting(lambda name, _: heard.append(name)):
        with reporting(None), step("quiet"):
            tell("detail")
        tell("loud")
    assert heard == ["loud"]
