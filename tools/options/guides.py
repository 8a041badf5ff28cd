"""The guide of the commands that draw a run at many settings: another run, one network, or the network itself."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from edm2.sweep.averages import Averages
    from edm2.sweep.guides import Guide


def is_guide_run(guide: str) -> bool:
    """True if a guide is a folder whose averages may guide, not a network."""
    from edm2.pipeline.folder import is_pipeline_folder

    return Path(guide).is_dir() and not is_pipeline_folder(Path(guide))


def make_guide(
    averages: "Averages",
    guide: str | None,
    unlabelled: bool,
    guide_at: int | None,
    make_net: "Callable[[], nn.Module] | None",
) -> "Guide | None":
    """Make the guide that --guide, --unlabelled-guide and --guide-at ask for; None where they ask for none.

    Raises:
        ValueError: the network cannot guide itself, or the guide's run has no snapshots of that time.
    """
    from edm2.sweep.averages import Averages
    from edm2.sweep.guides import FixedGuide, GuideRun, UnlabelledGuide
    from edm2.tools.options.networks import check_label_dropout

    if unlabelled:
        check_label_dropout(str(averages.folder), averages.metadata)
        return UnlabelledGuide()
    if guide is None:
        return None
    if not is_guide_run(guide):
        return FixedGuide(guide, make_net)
    run = Averages(guide, averages.max_bytes, make_net)
    time = guide_at or run.last
    run.check(time, [0.1])  # refuses a time without snapshots
    return GuideRun(run, time)
