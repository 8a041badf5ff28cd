"""Facts that the files of other programs do not tell."""

from collections.abc import Sequence
from dataclasses import dataclass

from edm2.post_hoc_ema.profile import sigma_rel_to_gamma


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts that the files of other programs do not tell."""

    update_every: int | None = None
    """Steps from one update of the averages to the next."""

    tracked: Sequence[float] = ()
    """EMA lengths of ema-pytorch, in the order in which it was given them."""

    decay: float | None = None
    """β of averages of constant decay, per update; None for plain weights."""

    clock_from: int = 0
    """Time at which fine-tuning began; averages are to be of the weights since then."""

    part: str | None = None
    """Subfolder of each checkpoint, or entry of each file, that holds the weights; None where it is clear."""

    def __post_init__(self) -> None:
        if self.decay is not None and not 0 < self.decay < 1:
            raise ValueError(f"decay={self.decay} must be between 0 and 1, such as 0.9999")
        if self.update_every is not None and self.update_every < 1:
            raise ValueError(f"update_every={self.update_every} must be 1 or more steps")
        if self.clock_from < 0:
            raise ValueError(f"clock_from={self.clock_from} must be a time, 0 or later")
        if len({*self.tracked}) < len(self.tracked):
            raise ValueError(f"tracked={tuple(self.tracked)} has a length twice")
        sigma_rel_to_gamma(self.tracked)  # refuses impossible lengths
