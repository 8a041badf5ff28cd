"""How the configurations of the paper's ladder are trained (arXiv 2312.02696v2, Table 1 and Appendix B).

A letter changes the settings that a preset has for config G, back to what they were at that step of the ladder. What
it changes in the network is in `edm2.networks.ladder`; docs/ladder.md has both side by side.
"""

from collections.abc import Callable
from typing import Any

Settings = dict[str, Any]
"""Fields of `NetworkConfig` and `TrainingConfig` by name."""

EDM_HALF_LIFE = 50_000_000
"""Half-life of config A's traditional EMA, in images."""


def ladder_settings(letter: str, settings: Settings) -> Settings:
    """Settings of config `letter`, from those that a preset has for config G.

    Goes down the ladder from G, undoing one step of the paper after the other. Learning rates keep the paper's ratios
    to that of G, since presets of other sizes have others than 0.0100.

    Raises:
        ValueError: no letter from A to G.
    """
    if letter not in (*UNDO, "A"):
        raise ValueError(f"config {letter!r} is unknown; there are A, B, C, D, E, F and G")
    changed = {**settings, "config": letter}
    for step, undo in UNDO.items():
        if step <= letter:
            break
        changed |= undo(changed)
    return changed


def _to_f(g: Settings) -> Settings:
    """Magnitude-preserving functions made dropout unnecessary in small networks."""
    return {"dropout": max(0.1, g.get("dropout", 0.0))}


def _to_e(f: Settings) -> Settings:
    """Group normalization is a matter of the network alone."""
    return {}


def _to_d(e: Settings) -> Settings:
    """Weights that may grow slow their own learning down: no decay of the learning rate."""
    return {"ref_batches": 0}


def _to_c(d: Settings) -> Settings:
    """Learning rates of weights that are not normalized, 0.0002 instead of 0.0100, and EDM's loss scaling. Activations
    are not clipped, as they grow beyond any bound."""
    return {"ref_lr": d.get("ref_lr", 0.01) * 0.02, "loss_scale": 100.0, "clip_act": None}


def _to_b(c: Settings) -> Settings:
    """What streamlining changed is a matter of the network alone."""
    return {}


def _to_a(b: Settings) -> Settings:
    """EDM's settings: twice the batch at half the learning rate, another Adam and noise distribution, no learned
    uncertainty, attention at one more resolution, and a traditional EMA beside those that all have here."""
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
"""By letter: what takes its settings to those of the letter before."""
