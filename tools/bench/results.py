"""What a benchmark found, as data: one record per thing measured or compared, and how they become JSON."""

import dataclasses
import statistics
from dataclasses import dataclass, field
from typing import Any

from edm2.tools.bench.clock import Duration, Timing


@dataclass(frozen=True)
class Measurement:
    """How long one thing takes."""

    section: str
    """training, sampling, vae or ema."""
    part: str
    """What was measured."""
    timing: Timing
    images: float = 0
    """Images that come out of it; 0 where none do."""
    flops: float = 0
    """Operations of convolutions, linear layers and attention in it (a multiplication and an addition are two)."""
    shares: tuple[float, ...] = ()
    """Of the achieved FLOP/s in each of the peaks."""
    peak_memory: int | None = None
    """Bytes that it needs beside weights, optimizer and averages; None where not measured."""
    note: str = ""
    """What to know about it."""

    @property
    def images_per_second(self) -> float | None:
        """None where no images come out."""
        return self.images / self.timing.seconds if self.images else None

    @property
    def flops_per_second(self) -> float | None:
        """None where the work is not of that kind."""
        return self.flops / self.timing.seconds if self.flops else None

    def to_json(self) -> dict[str, Any]:
        """All fields, and what follows from them."""
        derived = {"images_per_second": self.images_per_second, "flops_per_second": self.flops_per_second}
        return dataclasses.asdict(self) | derived


@dataclass(frozen=True)
class Comparison:
    """How often we do something while another implementation does it once, in rounds in which both took turns."""

    section: str
    part: str
    rival: str
    """Name of the other implementation."""
    precisions: tuple[str, str]
    """Ours and theirs."""
    what: str
    """What exactly both did, for people."""
    ours: Timing
    theirs: Timing
    ratios: tuple[float, ...]
    """Their time over ours, of each round."""

    @classmethod
    def of(
        cls, section: str, part: str, rival: str, precisions: tuple[str, str], what: str,
        ours: list[Duration], theirs: list[Duration],
    ) -> "Comparison":  # fmt: skip
        """From the durations of the rounds."""
        ratios = tuple(their.seconds / our.seconds for our, their in zip(ours, theirs, strict=True))
        return cls(section, part, rival, precisions, what, Timing.of(ours), Timing.of(theirs), ratios)

    @property
    def ratio(self) -> float:
        """Median over rounds."""
        return statistics.median(self.ratios)

    def to_json(self) -> dict[str, Any]:
        """All fields, and the median."""
        return dataclasses.asdict(self) | {"ratio": self.ratio}


@dataclass(frozen=True)
class Skipped:
    """What could not be measured, and why."""

    section: str
    why: str

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return dataclasses.asdict(self)


Finding = Measurement | Comparison | Skipped


@dataclass(frozen=True)
class Peak:
    """What the device can do at most."""

    name: str
    """The work."""
    flops_per_second: float


@dataclass
class Report:
    """All that a benchmark found, and where."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    network: dict[str, Any]
    peaks: list[Peak] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def of(self, kind: type) -> list[Any]:
        """Findings of one kind, in order."""
        return [finding for finding in self.findings if isinstance(finding, kind)]

    def to_json(self) -> dict[str, Any]:
        """Plain values, one list per kind of finding."""
        return {
            "machine": self.machine,
            "settings": self.settings,
            "network": self.network,
            "peaks": [dataclasses.asdict(peak) for peak in self.peaks],
            "measurements": [finding.to_json() for finding in self.of(Measurement)],
            "comparisons": [finding.to_json() for finding in self.of(Comparison)],
            "skipped": [finding.to_json() for finding in self.of(Skipped)],
        }
