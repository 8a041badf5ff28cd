"""Search for the lowest point of a function that is expensive to evaluate and has one valley, from coarse to fine.

Points that do not depend on each other are evaluated in one call, so that they can share work. The choice of points
depends on the values alone: a search repeated with the same values visits the same points.
"""

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Coordinates = tuple[float, ...]
"""One value per axis."""

Evaluate = Callable[[Sequence[Coordinates]], Sequence[float]]
"""Values of the function at some points."""


@dataclass(frozen=True)
class Axis:
    """One coordinate of the search, between the ends of its list."""

    name: str
    """Name for people."""
    values: tuple[float, ...]
    """Values to look at first, ascending."""
    step: float
    """Resolution: refined values are multiples of it."""


def check_budget(axes: Sequence[Axis], budget: int) -> None:
    """Raise ValueError if the budget does not even cover the lists."""
    least = 1 + sum(len(axis.values) - 1 for axis in axes)  # the lists share their first point
    if budget < least:
        raise ValueError(f"{budget} evaluations are too few: the lists alone take {least}; allow more, or shorten them")


def search(axes: Sequence[Axis], evaluate: Evaluate, budget: int) -> dict[Coordinates, float]:
    """Search for the lowest point.

    First the whole list of each axis in turn, through the best point so far (at the beginning, the middle of all
    lists). Then the neighbours of the best point on each axis in turn; where none is lower, the intervals on both of
    its sides are halved, on all axes, until they are as short as their `step` or the budget is spent. With one axis
    this is bisection of a bracket of three points.

    `evaluate` is called with new points only, `budget` of them at most.

    Returns:
        All evaluated points and their values, in the order of evaluation.

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
    """Known values of the function, and the points to evaluate next."""

    def __init__(self, axes: Sequence[Axis], evaluate: Evaluate, budget: int) -> None:
        self.axes = axes
        self.evaluate = evaluate
        self.budget = budget
        self.known: dict[Coordinates, float] = {}
        self.grids = [list(axis.values) for axis in axes]
        self.start: Coordinates = tuple(axis.values[len(axis.values) // 2] for axis in axes)

    @property
    def best(self) -> Coordinates:
        """Lowest point; of equal ones the first."""
        return min(self.known, key=self.known.__getitem__, default=self.start)

    @property
    def is_spent(self) -> bool:
        return len(self.known) >= self.budget

    def look_at(self, number: int, values: Sequence[float]) -> None:
        """Evaluate points that differ from the best one on axis `number`, within the budget."""
        points = [_moved(self.best, number, value) for value in values]
        new = [point for point in points if point not in self.known][: self.budget - len(self.known)]
        if new:
            self.known.update(zip(new, self.evaluate(new), strict=True))

    def descend(self, number: int) -> bool:
        """Step from neighbour to neighbour on one axis while that leads down; return True if it did."""
        start = self.best
        while True:
            before = self.best
            self.look_at(number, self._neighbours(number))
            if self.best == before or self.is_spent:
                return self.best != start

    def refine(self) -> bool:
        """Halve the intervals beside the best point; return False if all have their shortest length."""
        halves = [
            (number, middle)
            for number, axis in enumerate(self.axes)
            for neighbour in self._neighbours(number)
            if (middle := _middle(self.best[number], neighbour, axis.step)) is not None
        ]
        for number, middle in halves:
            insort(self.grids[number], middle)
        return bool(halves)

    def _neighbours(self, number: int) -> list[float]:
        values = self.grids[number]
        i = values.index(self.best[number])
        return values[max(i - 1, 0) : i] + values[i + 1 : i + 2]


def _moved(point: Coordinates, number: int, value: float) -> Coordinates:
    return point[:number] + (value,) + point[number + 1 :]


def _middle(a: float, b: float, step: float) -> float | None:
    """Multiple of `step` nearest to the middle; None if it does not lie between a and b."""
    middle = round(round((a + b) / 2 / step) * step, 10)
    return middle if min(a, b) < middle < max(a, b) else None
