"""Training settings of the paper's configs A to G (arXiv 2312.02696v2, Table 1 and Appendix B).

Presets have the settings of config G; each step undoes one step of the paper's ladder. Changes in the network are in
`edm2.networks.ladder`; docs/ladder.md has both side by side.
"""

from collections.abc import Callable

from edm2.planning.presets import Settings

EDM_HALF_LIFE = 50_000_000
"""Half-life of config A's traditional EMA, in images."""


def ladder_settings(config: str, settings: Settings) -> Settings:
    """Change the settings that a preset has for config G into those of another config.

    Goes down the ladder from G, undoing one step of the paper after the other. Learning rates keep the paper's ratios
    to that of G, since presets of other sizes have others than 0.0100.

    Raises:
        ValueError: the config is not one of A to G.
    """
    if config not in (*UNDO, "A"):
        raise ValueError(f"config {config!r} is unknown; there are A, B, C, D, E, F and G")
    changed = {**settings, "config": config}
    for step, undo in UNDO.items():
        if step <= config:
            break
        changed |= undo(changed)
    return changed


def _to_f(g: Settings) -> Settings:
    """Restore dropout, which magnitude-preserving functions made unnecessary in small networks."""
    return {"dropout": max(0.1, g.get("dropout", 0.0))}


def _to_e(f: Settings) -> Settings:
    """Change nothing: group normalization is a matter of the network alone."""
    return {}


def _to_d(e: Settings) -> Settings:
    """Drop the decay of the learning rate: weights that may grow slow their own learning down."""
    return {"ref_batches": 0}


def _to_c(d: Settings) -> Settings:
    """Restore the learning rate of weights that are not normalized, 0.0002 instead of 0.0100, and EDM's loss scaling.

    Activations are not clipped, as they grow beyond any bound.
    """
    return {"ref_lr": d.get("ref_lr", 0.01) * 0.02, "loss_scale": 100.0, "clip_act": None}


def _to_b(c: Settings) -> Settings:
    """Change nothing: streamlining is a matter of the network alone."""
    return {}


def _to_a(b: Settings) -> Settings:
    """Restore EDM's settings, and add a traditional EMA to the averages that all configs have here.

    Twice the batch at half the learning rate, another Adam and noise distribution, no learned uncertainty, attention at
    one more resolution.
    """
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
"""Functions from the settings of a config to those of the config before it."""
