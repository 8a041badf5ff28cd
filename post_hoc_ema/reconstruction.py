"""Post-hoc averages of any width from snapshots (Karras et al. 2024, arXiv 2312.02696v2, Appendix C, Algorithm 3).

The coefficients depend on times and widths only; the weights of a network are then combined tensor by tensor.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor

from edm2.post_hoc_ema.dtypes import average_dtype
from edm2.post_hoc_ema.profile import solve_coefficients
from edm2.post_hoc_ema.snapshot import Snapshot


def reconstruct(
    snapshots: Sequence[Snapshot], sigma_rels: Sequence[float], at: int | None = None
) -> list[dict[str, Tensor]]:
    """State dicts of the averages of the given widths, in that order; arguments and errors as `reconstruct_tensors`."""
    states: list[dict[str, Tensor]] = [{} for _ in sigma_rels]
    for name, tensors in reconstruct_tensors(snapshots, sigma_rels, at):
        for state, tensor in zip(states, tensors, strict=True):
            state[name] = tensor
    return states


def reconstruct_tensors(
    snapshots: Sequence[Snapshot], sigma_rels: Sequence[float], at: int | None = None
) -> Iterator[tuple[str, list[Tensor]]]:
    """Reconstruct averages one tensor at a time, in the memory of one tensor times (widths + 1).

    Args:
        snapshots: In any order; those later than `at` are ignored, as are those of 0 images (the initial weights).
        sigma_rels: Relative widths to reconstruct, within (0, 12^-0.5).
        at: Images seen by the reconstructed averages, one of the stored times; None for the latest.

    Returns:
        Pairs (name, one tensor per width): averages in float32 (float64 where stored in float64); buffers and integers
        are copied from the last snapshot used. Each tensor of each snapshot is read once.

    Raises:
        ValueError: Fewer than two snapshots, a time that is not stored, an impossible width, two snapshots of equal
            time and width, or snapshots of different networks. Different shapes are noticed when a tensor is read.
    """
    inputs = _select(snapshots, at)
    _refuse_different_names(inputs)
    coefficients = solve_coefficients(
        in_t=[snapshot.images_seen for snapshot in inputs],
        in_sigma_rel=[snapshot.sigma_rel for snapshot in inputs],
        out_t=inputs[0].images_seen,
        out_sigma_rel=sigma_rels,
    )
    return _combine_all(inputs, coefficients.tolist())


def _select(snapshots: Sequence[Snapshot], at: int | None) -> list[Snapshot]:
    """The snapshots from which to reconstruct at `at`, the latest first."""
    usable = [snapshot for snapshot in snapshots if snapshot.images_seen > 0]
    times = sorted({snapshot.images_seen for snapshot in usable})
    if at is not None and times and at not in times:
        raise ValueError(f"no snapshot was stored at {at} images seen; the nearest times are {_nearest(times, at)}")
    inputs = [snapshot for snapshot in usable if at is None or snapshot.images_seen <= at]
    if len(inputs) < 2:
        until = "" if at is None else f" up to {at} images seen"
        raise ValueError(
            f"reconstruction needs two snapshots or more{until}, found {len(inputs)} (0 images not counted)"
        )
    return sorted(inputs, key=lambda snapshot: (snapshot.images_seen, snapshot.sigma_rel), reverse=True)


def _nearest(times: Sequence[int], at: int) -> str:
    """The stored times on both sides of `at`, as text."""
    before, after = [t for t in times if t < at], [t for t in times if t > at]
    return " and ".join(str(t) for t in before[-1:] + after[:1])


def _refuse_different_names(inputs: Sequence[Snapshot]) -> None:
    """All snapshots must be of one network."""
    expected = set(inputs[0].names)
    for snapshot in inputs[1:]:
        for name in sorted(expected.symmetric_difference(snapshot.names)):
            raise ValueError(
                f"snapshots are of different networks: only one of {_where(inputs[0], snapshot)} has {name}"
            )


def _combine_all(inputs: Sequence[Snapshot], coefficients: list[list[float]]) -> Iterator[tuple[str, list[Tensor]]]:
    """Every tensor of the network; `inputs` latest first, `coefficients` [inputs, widths]."""
    latest = inputs[0]
    buffers = frozenset(getattr(latest, "buffers", ()))  # readers from elsewhere need not have any
    for name in latest.names:
        tensor = latest.read(name)
        if name in buffers or average_dtype(tensor.dtype) is None:
            yield name, [tensor.clone() for _ in coefficients[0]]
        else:
            yield name, _combine(name, tensor, inputs, coefficients)


def _combine(name: str, newest: Tensor, inputs: Sequence[Snapshot], coefficients: list[list[float]]) -> list[Tensor]:
    """Σ_i x_i θ̂_i for each width; `newest` is the tensor of `inputs[0]`, read already."""
    dtype = average_dtype(newest.dtype)
    sums = [newest.to(dtype) * x for x in coefficients[0]]
    for snapshot, row in zip(inputs[1:], coefficients[1:], strict=True):
        tensor = snapshot.read(name)
        if tensor.shape != newest.shape:
            shapes = f"{tuple(newest.shape)} and {tuple(tensor.shape)}"
            raise ValueError(
                f"snapshots are of different networks: {name} is {shapes} in {_where(inputs[0], snapshot)}"
            )
        tensor = tensor.to(dtype)  # once for all widths
        for total, x in zip(sums, row, strict=True):
            total.add_(tensor, alpha=x)
    return sums


def _where(a: Snapshot, b: Snapshot) -> str:
    """Two snapshots, by the numbers that are in their file names."""
    return " and ".join(f"({s.images_seen} images, sigma_rel {s.sigma_rel:g})" for s in (a, b))
