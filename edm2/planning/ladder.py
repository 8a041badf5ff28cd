"""Training settings of the paper's configs A to G (arXiv 2312.02696v2, Table 1 and Appendix B).

Presets have the settings of config G; each step undoes one step of the paper's ladder. Changes in the network are in
`edm2.networks.ladder`; docs/ladder.md has both side by side.
"""

from edm2.planning.presets import Settings

EDM_HALF_LIFE = 50_000_000
"""Half-life of config A's traditional EMA, in images."""


def ladder_settings(config: str, settings: Settings) -> Settings:
    """Change the settings that a preset has for config G into those of another config.

    Goes down the ladder from G, undoing one step of the paper after the other; from F to E and from C to B only the
    network changes. Learning rates keep the paper's ratios to that of G, since presets of other sizes have others than
    0.0100.
    """
    if config not in tuple("ABCDEFG"):
        raise ValueError(f"config {config!r} is unknown; there are A, B, C, D, E, F and G")
    s = {**settings, "config": config}
    if config <= "F":  # dropout, which magnitude-preserving functions made unnecessary in small networks
        s["dropout"] = max(0.1, s.get("dropout", 0.0))
    if config <= "D":  # no decay of the learning rate: weights that may grow slow their own learning down
        s["ref_batches"] = 0
    if config <= "C":
        s["ref_lr"] = s.get("ref_lr", 0.01) * 0.02  # of weights that are not normalized: 0.0002 instead of 0.0100
        s["loss_scale"] = 100.0  # EDM's
        s["clip_act"] = None  # activations grow beyond any bound
    if config <= "A":
        s |= _edm_settings(s)
    return s


def _edm_settings(b: Settings) -> Settings:
    """EDM's settings in place of config B's, and a traditional EMA beside the averages that all configs have here.

    Twice the batch at half the learning rate, another Adam and noise distribution, no learned uncertainty, attention at
    one more resolution.
    """
    batch, attention = 2 * b.get("batch_size", 2048), b.get("attn_resolutions", (16, 8))
    return {
        "batch_size": batch,
        "duration": -(-b.get("duration", 2048 << 20) // batch) * batch,
        "ref_lr": b["ref_lr"] / 2,
        "betas": (0.9, 0.999),
        "P_mean": -1.2,
        "P_std": 1.2,
        "weighting": "edm",
        "attn_resolutions": (2 * max(attention), *attention),
        "traditional_ema": EDM_HALF_LIFE,
    }
