"""Training settings of the paper's configs A to G (arXiv 2312.02696v2, Table 1 and Appendix B).

A preset holds the settings of config G; those of another config are G's with steps of the ladder undone. The networks
are in `edm2.networks.ladder`; docs/ladder.md has both side by side.
"""

from collections.abc import Callable

from edm2.planning.presets import Settings

EDM_HALF_LIFE = 50_000_000
"""Half-life of config A's traditional EMA, in images."""


def ladder_settings(architecture: str, settings: Settings) -> Settings:
    """Settings of config `architecture`, from a preset's settings for config G.

    Goes down the ladder from G, undoing one step of the paper after the other. Learning rates keep the paper's ratios
    to that of G, since presets of other sizes have others than 0.0100.

    Raises:
        ValueError: no config from A to G.
    """
    if architecture not in (*UNDO, "A"):
        raise ValueError(f"config {architecture!r} is unknown; there are A, B, C, D, E, F and G")
    changed = {**settings, "config": architecture}
    for step, undo in UNDO.items():
        if step <= architecture:
            break
        changed |= undo(changed)
    return changed


def _to_f(g: Settings) -> Settings:
    """Dropout in all sizes; magnitude-preserving functions make it unnecessary in small networks."""
    return {"dropout": max(0.1, g.get("dropout", 0.0))}


def _to_e(f: Settings) -> Settings:
    """Nothing: group normalization is a change of the network alone."""
    return {}


def _to_d(e: Settings) -> Settings:
    """No decay of the learning rate: growing weights slow their own learning down."""
    return {"ref_batches": 0}


def _to_c(d: Settings) -> Settings:
    """Learning rate of weights that are not normalized (0.0002, not 0.0100), EDM's loss scaling, and no clipping of
    activations, as they grow beyond any bound."""
    return {"ref_lr": d.get("ref_lr", 0.01) * 0.02, "loss_scale": 100.0, "clip_act": None}


def _to_b(c: Settings) -> Settings:
    """Nothing: streamlining is a change of the network alone."""
    return {}


def _to_a(b: Settings) -> Settings:
    """EDM's settings: twice the batch at half the learning rate, another Adam and noise distribution, no learned
    uncertainty, attention at one more resolution, and a traditional EMA beside the power-function EMAs."""
    batch = 2 * b.get("batch_size", 2048)
    finest = max(b.get("attn_resolutions", (16, 8)))
    return {
        "batch_size": batch,
        "duration": -(-b.get("duration", 2048 << 20) // batch) * batch,
        "ref_lr": b["ref_lr"] / 2,
        "betas": (0.9, 0.999),
        "P_mean": -1.2,
        "P_std": 1.2,
        "weighting": "edm",
        "attn_resolutions": (2 * finest, *b.get("attn_resolutions", (16, 8))),
        "traditional_ema": EDM_HALF_LIFE,
    }


UNDO: dict[str, Callable[[Settings], Settings]] = {
    "G": _to_f, "F": _to_e, "E": _to_d, "D": _to_c, "C": _to_b, "B": _to_a,
}  # fmt: skip
"""Function that takes the settings of a config to those of the config before, from G down."""
