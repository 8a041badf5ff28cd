"""The lowest point of a function that is dear to evaluate and has one valley: coarse lists first, then ever finer.

The function is evaluated at several points at a time where they do not depend on each other, so that they can share
work. Which points are asked for depends on the values alone: a search repeated with the same values takes the same way.
"""

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Place = tuple[float, ...]
"""One value per axis."""

Evaluate = Callable[[Sequence[Place]], Sequence[float]]
"""Values of the function at some places."""


@dataclass(frozen=True)
class Axis:
    """One coordinate of the search; its ends are those of the list."""

    name: str
    """For people."""
    values: tuple[float, ...]
    """Where to look at first, ascending."""
    step: float
    """The search does not ask for values closer together than this; it asks for multiples of it."""

    def __post_init__(self) -> None:
        if not self.values or list(self.values) != sorted(set(self.values)):
            raise ValueError(f"values of {self.name} must be a list in ascending order, each once: {self.values}")
        if not self.step > 0:
            raise ValueError(f"step={self.step} of {self.name} must be positive")


def coarse_evaluations(axes: Sequence[Axis]) -> int:
    """How many evaluations the lists take at most, before anything is refined."""
    return 1 + sum(len(axis.values) - 1 for axis in axes)


def check_budget(axes: Sequence[Axis], budget: int) -> None:
    """Raises ValueError if a search with so many evaluations could not even look at the lists."""
    if budget < (least := coarse_evaluations(axes)):
        raise ValueError(f"{budget} evaluations are too few: the lists alone take {least}; allow more, or shorten them")


def search(axes: Sequence[Axis], evaluate: Evaluate, budget: int) -> dict[Place, float]:
    """Look for the lowest point.

    First the whole list of each axis in turn, through the best point so far (at the beginning, the middle of all
    lists). Then the neighbours of the best point on each axis in turn; where none is lower, the intervals on both of
    its sides are halved, on all axes, until they are as short as their `step` or the budget is spent. With one axis
    this is bisection of a bracket of three points.

    Args:
        axes: What to vary.
        evaluate: Function values at places; called with places that are all new, each once.
        budget: Most places to evaluate.

    Returns:
        All places evaluated and their values, in the order of evaluation.

    Raises:
        ValueError: as `check_budget`.
    """
    check_budget(axes, budget)
    valley = _Valley(axes, evaluate, budget)
    for number, axis in enumerate(axes):
        valley.look_at(number, axis.values)
    while not valley.is_spent:
        moved = [valley.descend(number) for number in range(len(axes))]
        if not any(moved) and not valley.refine():
            break
    return valley.known


class _Valley:
    """What is known of the function, and where to look next."""

    def __init__(self, axes: Sequence[Axis], evaluate: Evaluate, budget: int) -> None:
        self.axes = axes
        self.evaluate = evaluate
        self.budget = budget
        self.known: dict[Place, float] = {}
        self.ladders = [list(axis.values) for axis in axes]
        self.start: Place = tuple(axis.values[len(axis.values) // 2] for axis in axes)

    @property
    def best(self) -> Place:
        """The lowest place; of equal ones the first."""
        return min(self.known, key=self.known.__getitem__, default=self.start)

    @property
    def is_spent(self) -> bool:
        return len(self.known) >= self.budget

    def look_at(self, number: int, values: Sequence[float]) -> None:
        """Evaluate places that differ from the best one on axis `number`, as far as the budget goes."""
        places = [_moved(self.best, number, value) for value in values]
        new = [place for place in places if place not in self.known][: self.budget - len(self.known)]
        if new:
            self.known.update(zip(new, self.evaluate(new), strict=True))

    def descend(self, number: int) -> bool:
        """Step from neighbour to neighbour on one axis while that leads down; whether it did."""
        start = self.best
        while True:
            before = self.best
            self.look_at(number, self._neighbours(number))
            if self.best == before or self.is_spent:
                return self.best != start

    def refine(self) -> bool:
        """Halve the intervals beside the best place; False if all are as short as may be."""
        halves = [
            (number, middle)
            for number, axis in enumerate(self.axes)
            for neighbour in self._neighbours(number)
            if (middle := _middle(self.best[number], neighbour, axis.step)) is not None
        ]
        for number, middle in halves:
            insort(self.ladders[number], middle)
        return bool(halves)

    def _neighbours(self, number: int) -> list[float]:
        ladder = self.ladders[number]
        rung = ladder.index(self.best[number])
        return ladder[max(rung - 1, 0) : rung] + ladder[rung + 1 : rung + 2]


def _moved(place: Place, number: int, value: float) -> Place:
    return place[:number] + (value,) + place[number + 1 :]


def _middle(a: float, b: float, step: float) -> float | None:
    """The multiple of `step` nearest to the middle, if it lies between."""
    middle = round(round((a + b) / 2 / step) * step, 10)
    return middle if min(a, b) < middle < max(a, b) else None
