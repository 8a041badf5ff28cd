"""Settings of distillations by name; docs/few_steps.md says what they were tried on."""

from edm2.planning.presets import Preset, Settings

COMMON: Settings = {"P_std": 1.6, "stratified_sigma": True, "weighting": "edm", "label_dropout": 0.0}
"""Settings of all distillations."""

PRESETS: dict[str, Preset] = {
    "digits": Preset(
        "the 8x8 digits, in ten minutes of a CPU core",
        training={
            "batch_size": 64, "duration": 208_000, "ref_lr": 0.01, "ref_batches": 600, "workers": 0,
            "status_every": 6_400, "snapshot_every": 4_000, "checkpoint_every": 52_000, "sample_every": 52_000,
            "holdout_every": 52_000,
        },
    ),
    "small": Preset(
        "your own pixels or latents, on a CPU or one small GPU",
        training={"batch_size": 64, "duration": 256_000, "ref_batches": 1_000, "status_every": 6_400},
    ),
    "img512": Preset(
        "ImageNet-512 latents, on eight large GPUs (not tried)",
        training={"batch_size": 2048, "duration": 64 << 20, "ref_batches": 10_000, "snapshot_precision": "fp16"},
    ),
}  # fmt: skip
