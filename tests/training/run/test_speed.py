"""The speed is that of settled steps, told once; times are told as people tell them."""

import pytest

from edm2.training.run.speed import Speedometer, time_text, with_unit


class Machine:
    """A device whose steps take time only when waited for, as a GPU's seem to."""

    def __init__(self, seconds_per_step: float, first_step: float = 0.0) -> None:
        self.clock = self.queued = 0.0
        self.seconds_per_step = seconds_per_step
        self.next_step = first_step or seconds_per_step

    def step(self) -> None:
        self.queued += self.next_step
        self.next_step = self.seconds_per_step
        while self.queued > 2 * self.seconds_per_step:  # the queue is short
            self.queued -= self.seconds_per_step
            self.clock += self.seconds_per_step

    def wait(self) -> None:
        self.clock += self.queued
        self.queued = 0.0


def told(machine: Machine, steps: int, batch_size: int = 8) -> list[tuple[int, float]]:
    """(step, speed) whenever the speedometer says something."""
    speedometer = Speedometer(batch_size, machine.wait, clock=lambda: machine.clock)
    said = []
    for step in range(1, steps + 1):
        machine.step()
        if (speed := speedometer.step_done()) is not None:
            said.append((step, speed))
    return said


@pytest.mark.parametrize(
    ("seconds_per_step", "steps"),
    [
        (0.001, 53),  # fifty steps, though they are over in a moment
        (0.25, 45),  # ten seconds, as the host counts them: the device is two steps behind
        (2.0, 15),  # ten steps, and two under way
        (100.0, 6),  # a minute is enough, however few the steps
    ],
)
def test_measured_over_enough_steps_and_told_once(seconds_per_step, steps):
    """Exactly, although the device runs behind the program: it is waited for at both ends."""
    assert told(Machine(seconds_per_step), 200) == [(pytest.approx(steps, abs=2), pytest.approx(8 / seconds_per_step))]


def test_neither_compilation_in_the_first_step_nor_a_run_of_a_few_steps_is_measured():
    assert told(Machine(0.5, first_step=120.0), 100)[0][1] == pytest.approx(16)
    assert told(Machine(0.01), 12) == []


DAY = 86_400


def test_times_and_numbers_of_any_size_are_readable():
    times = {0.4: "0 seconds", 1: "1 second", 50: "50 seconds", 150: "2.5 minutes", 3_600: "60 minutes"}
    times |= {27_000: "7.5 hours", DAY: "24 hours", 9.12 * DAY: "9.1 days", 136.3 * DAY: "136 days", 1e9: "11,574 days"}
    assert {seconds: time_text(seconds) for seconds in times} == times
    numbers = {0: "0 B", 999: "999 B", 1000: "1 kB", 1_520_000_000: "1.52 GB", 3e23: "300 ZB"}
    assert {value: with_unit(value, "B") for value in numbers} == numbers
