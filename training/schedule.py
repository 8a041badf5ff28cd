"""Learning rate, and times at which things are due; the clock is images seen (arXiv 2312.02696v2, Eq. 67)."""

import math


def inverse_sqrt_lr(
    images_seen: int,
    batch_size: int,
    ref_lr: float,
    ref_batches: float,
    rampup_images: float,
    cooldown_images: float = 0,
    duration: float = math.inf,
) -> float:
    """Inverse-square-root decay with linear ramp-up (Eq. 67), and a linear cooldown at the end if asked for.

        lr = ref_lr / sqrt(max(t / t_ref, 1)) · min(t / t_rampup, 1) · min((t_end - t) / t_cooldown, 1)

    Args:
        images_seen: t, the images seen before the step.
        batch_size: Images per step; t_ref is `ref_batches` steps of this many images.
        ref_lr: Learning rate at the plateau.
        ref_batches: Steps after which the decay begins; 0 for a constant rate.
        rampup_images: t_rampup, images over which the rate rises from zero; 0 for none.
        cooldown_images: t_cooldown, images over which the rate falls to zero at the end; 0 for none, as in the paper.
        duration: t_end, images in all.
    """
    lr = ref_lr
    if ref_batches > 0:
        lr /= math.sqrt(max(images_seen / (ref_batches * batch_size), 1))
    if rampup_images > 0:
        lr *= min(images_seen / rampup_images, 1)
    if cooldown_images > 0:
        lr *= min((duration - images_seen) / cooldown_images, 1)
    return lr


def due_times(interval: int, batch_size: int, duration: int) -> list[int]:
    """Images seen at all times that are due in a run from 0 to `duration`, and at its end."""
    interval = max(interval, batch_size)  # never twice within a step
    due = {math.ceil(multiple / batch_size) * batch_size for multiple in range(interval, duration + 1, interval)}
    return sorted(due | {duration})


def is_due(interval: int | None, before: int, after: int) -> bool:
    """True if a step from `before` to `after` images seen crosses a multiple of `interval` (None: never)."""
    return interval is not None and before // interval != after // interval
