"""Published settings of sampling: network, guide, guidance weight, and the score to expect.

From Table 6 of EDM2 (arXiv 2312.02696v2), Table 1 of autoguidance (arXiv 2406.02507) and Table 1 of guidance intervals
(arXiv 2404.07724). Every preset goes with 32 Heun steps without churn, and 50,000 images.
"""

from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class PublishedNetwork:
    """A published snapshot, reconstructed at one EMA length."""

    model: str
    """Name of the model, such as "edm2-img512-s"."""
    kimg: int
    """Images seen in training, in thousands."""
    sigma_rel: float
    """Relative length of the EMA."""

    @property
    def stem(self) -> str:
        """Name of its file, without the suffix."""
        return f"{self.model}-{self.kimg:07d}-{self.sigma_rel:.3f}"

    def find(self, folder: Path) -> Path:
        """Find its file in a folder: converted (.safetensors) or, else, as published (.pkl).

        Raises:
            FileNotFoundError: neither is there.
        """
        for suffix in (".safetensors", ".pkl"):
            path = folder / f"{self.stem}{suffix}"
            if path.is_file():
                return path
        raise FileNotFoundError(
            f"{folder}: holds neither {self.stem}.pkl nor {self.stem}.safetensors; put the published file there (or "
            "what `edm2 convert` makes of it), or name the folder that has it by --networks"
        )


@dataclass(frozen=True)
class GenerationPreset:
    """Settings of `edm2 generate`; each can be overridden there."""

    network: PublishedNetwork
    """Network to sample from."""
    published: float
    """Score in the paper, lower is better; the preset's name ends in the metric, fid or dino."""
    guide: PublishedNetwork | None = None
    """Network to guide away from."""
    guidance: float = 1.0
    """Guidance weight; 1 is none."""
    interval_steps: tuple[int, int] | None = None
    """Steps with guidance (first, end), the latter excluded; None: all (`guidance.interval_of_steps`)."""

    @property
    def interval_text(self) -> str:
        """Steps with guidance, as text."""
        if self.interval_steps is None:
            return "all"
        first, end = self.interval_steps
        return f"{first}-{end - 1}"


FULLY_TRAINED = {
    "edm2-img512-xs": 2147483,
    "edm2-img512-xs-uncond": 2147483,
    "edm2-img512-s": 2147483,
    "edm2-img512-s-uncond": 2147483,
    "edm2-img512-m": 2147483,
    "edm2-img512-l": 1879048,
    "edm2-img512-xl": 1342177,
    "edm2-img512-xxl": 939524,
    "edm2-img64-s": 1073741,
    "edm2-img64-m": 2147483,
    "edm2-img64-l": 1073741,
    "edm2-img64-xl": 671088,
}
"""Thousands of images seen by the final networks."""


BRIEFLY_TRAINED = {
    "edm2-img512-xs": 134217,
    "edm2-img512-xs-uncond": 134217,
    "edm2-img512-m": 268435,
    "edm2-img64-xs": 134217,
}
"""Thousands of images seen by the weaker networks that autoguidance moves away from."""


def _unguided(model: str, sigma_rel: float, published: float) -> GenerationPreset:
    """Preset of a network without a guide."""
    return GenerationPreset(PublishedNetwork(model, FULLY_TRAINED[model], sigma_rel), published)


def _classifier_free(
    model: str, sigma_rel: float, guidance: float, published: float, steps: tuple[int, int] | None = None
) -> GenerationPreset:
    """Preset of a network guided by the unconditional XS network of the same EMA length."""
    guide = PublishedNetwork("edm2-img512-xs-uncond", FULLY_TRAINED["edm2-img512-xs-uncond"], sigma_rel)
    return replace(_unguided(model, sigma_rel, published), guide=guide, guidance=guidance, interval_steps=steps)


def _autoguided(
    model: str, sigma_rel: float, guide: str, guide_sigma_rel: float, guidance: float, published: float
) -> GenerationPreset:
    """Preset of a network guided by a smaller, less trained one, which has an EMA length of its own."""
    weaker = PublishedNetwork(guide, BRIEFLY_TRAINED[guide], guide_sigma_rel)
    return replace(_unguided(model, sigma_rel, published), guide=weaker, guidance=guidance)


GENERATION_PRESETS: dict[str, GenerationPreset] = {
    "edm2-img512-xs-fid": _unguided("edm2-img512-xs", 0.135, 3.53),
    "edm2-img512-s-fid": _unguided("edm2-img512-s", 0.130, 2.56),
    "edm2-img512-m-fid": _unguided("edm2-img512-m", 0.100, 2.25),
    "edm2-img512-l-fid": _unguided("edm2-img512-l", 0.085, 2.06),
    "edm2-img512-xl-fid": _unguided("edm2-img512-xl", 0.085, 1.96),
    "edm2-img512-xxl-fid": _unguided("edm2-img512-xxl", 0.070, 1.91),
    "edm2-img512-xs-dino": _unguided("edm2-img512-xs", 0.200, 103.39),
    "edm2-img512-s-dino": _unguided("edm2-img512-s", 0.190, 68.64),
    "edm2-img512-m-dino": _unguided("edm2-img512-m", 0.155, 58.44),
    "edm2-img512-l-dino": _unguided("edm2-img512-l", 0.155, 52.25),
    "edm2-img512-xl-dino": _unguided("edm2-img512-xl", 0.155, 45.96),
    "edm2-img512-xxl-dino": _unguided("edm2-img512-xxl", 0.150, 42.84),
    "edm2-img512-xs-guid-fid": _classifier_free("edm2-img512-xs", 0.045, 1.4, 2.91),
    "edm2-img512-s-guid-fid": _classifier_free("edm2-img512-s", 0.025, 1.4, 2.23),
    "edm2-img512-m-guid-fid": _classifier_free("edm2-img512-m", 0.030, 1.2, 2.01),
    "edm2-img512-l-guid-fid": _classifier_free("edm2-img512-l", 0.015, 1.2, 1.88),
    "edm2-img512-xl-guid-fid": _classifier_free("edm2-img512-xl", 0.020, 1.2, 1.85),
    "edm2-img512-xxl-guid-fid": _classifier_free("edm2-img512-xxl", 0.015, 1.2, 1.81),
    "edm2-img512-xs-guid-dino": _classifier_free("edm2-img512-xs", 0.150, 1.7, 79.94),
    "edm2-img512-s-guid-dino": _classifier_free("edm2-img512-s", 0.085, 1.9, 52.32),
    "edm2-img512-m-guid-dino": _classifier_free("edm2-img512-m", 0.015, 2.0, 41.98),
    "edm2-img512-l-guid-dino": _classifier_free("edm2-img512-l", 0.035, 1.7, 38.20),
    "edm2-img512-xl-guid-dino": _classifier_free("edm2-img512-xl", 0.030, 1.7, 35.67),
    "edm2-img512-xxl-guid-dino": _classifier_free("edm2-img512-xxl", 0.015, 1.7, 33.09),
    # Printed as (0.28, 2.90], (0.19, 1.61] and, for both sizes, (0.60, 5.00]: levels 22 and 15, 23 and 17, 20 and 13.
    "edm2-img512-s-interval-fid": _classifier_free("edm2-img512-s", 0.025, 2.1, 1.68, steps=(15, 22)),
    "edm2-img512-xxl-interval-fid": _classifier_free("edm2-img512-xxl", 0.015, 2.0, 1.40, steps=(17, 23)),
    "edm2-img512-s-interval-dino": _classifier_free("edm2-img512-s", 0.085, 3.2, 46.25, steps=(13, 20)),
    "edm2-img512-xxl-interval-dino": _classifier_free("edm2-img512-xxl", 0.015, 2.9, 29.16, steps=(13, 20)),
    "edm2-img512-s-autog-fid": _autoguided("edm2-img512-s", 0.070, "edm2-img512-xs", 0.125, 2.10, 1.34),
    "edm2-img512-s-autog-dino": _autoguided("edm2-img512-s", 0.120, "edm2-img512-xs", 0.165, 2.45, 36.67),
    "edm2-img512-xxl-autog-fid": _autoguided("edm2-img512-xxl", 0.075, "edm2-img512-m", 0.155, 2.05, 1.25),
    "edm2-img512-xxl-autog-dino": _autoguided("edm2-img512-xxl", 0.130, "edm2-img512-m", 0.205, 2.30, 24.18),
    "edm2-img512-s-uncond-autog-fid": _autoguided(
        "edm2-img512-s-uncond", 0.070, "edm2-img512-xs-uncond", 0.110, 2.85, 3.86
    ),
    "edm2-img512-s-uncond-autog-dino": _autoguided(
        "edm2-img512-s-uncond", 0.090, "edm2-img512-xs-uncond", 0.125, 2.90, 90.39
    ),
    "edm2-img64-s-fid": _unguided("edm2-img64-s", 0.075, 1.58),
    "edm2-img64-m-fid": _unguided("edm2-img64-m", 0.060, 1.43),
    "edm2-img64-l-fid": _unguided("edm2-img64-l", 0.040, 1.33),
    "edm2-img64-xl-fid": _unguided("edm2-img64-xl", 0.040, 1.33),
    "edm2-img64-s-autog-fid": _autoguided("edm2-img64-s", 0.045, "edm2-img64-xs", 0.110, 1.70, 1.01),
    "edm2-img64-s-autog-dino": _autoguided("edm2-img64-s", 0.105, "edm2-img64-xs", 0.175, 2.20, 31.85),
}

FAMILIES = """\
  edm2-img512-{xs,s,m,l,xl,xxl}-{fid,dino}         the network alone
  edm2-img512-{xs,s,m,l,xl,xxl}-guid-{fid,dino}    guided by an unconditional network
  edm2-img512-{s,xxl}-interval-{fid,dino}          the same, at medium noise levels
  edm2-img512-{s,xxl,s-uncond}-autog-{fid,dino}    guided by a weaker version
  edm2-img64-{s,m,l,xl}-fid                        the network alone
  edm2-img64-s-autog-{fid,dino}                    guided by a weaker version
"""
"""Names of all presets, abbreviated by a shell's braces."""


def describe_presets() -> list[str]:
    """Lines of a table of all presets."""
    row = "{:<32}{:<38}{:<41}{:>6}  {:<6}{:>7}".format
    lines = [row("preset", "network", "guide", "weight", "steps", "score")]
    for name, preset in GENERATION_PRESETS.items():
        guide, weight, steps = "-", "-", "-"
        if preset.guide is not None:
            guide, weight, steps = preset.guide.stem, f"{preset.guidance:.2f}", preset.interval_text
        lines.append(row(name, preset.network.stem, guide, weight, steps, f"{preset.published:.2f}"))
    return [*lines, "", "Scores of 50,000 images: FID where the name ends in fid, FD of DINOv2 features in dino."]
