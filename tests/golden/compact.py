"""Make the compact golden set that lies beside this file from the full one.

    python tests/golden/compact.py SOURCE [TARGET]

Same folders, file names and keys as the full set, only fewer of them: what a clone without the full set needs to run
every test at least once. Tests are driven by the JSON files, which are copied whole, and pass over cases whose arrays
are not there. Why each rule keeps what it keeps is said beside it.
"""

import argparse
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

Rule = Callable[[str, Tensor], bool]


def matching(*patterns: str) -> Rule:
    """Keys that match one of the shell patterns."""
    return lambda key, x: any(fnmatch(key, pattern) for pattern in patterns)


def small(elements: int, *patterns: str) -> Rule:
    """Tensors of at most `elements` elements whose keys match: gradients and weights are checked tensor by tensor."""
    return lambda key, x: x.numel() <= elements and matching(*patterns)(key, x)


def either(*rules: Rule) -> Rule:
    """Keys that one of the rules keeps."""
    return lambda key, x: any(rule(key, x) for rule in rules)


COPIED = (  # small enough to be kept whole
    "ops/*",
    "blocks/*",
    "tables/*",
    "net/net.json",
    "train/train.json",
    "train/nonfinite.safetensors",
    "sampler/sampler.json",
    "phema/*",
    "checkpoints/checkpoints.json",
    "checkpoints/forward.safetensors",
    "ladder/config_a.json",  # names and counts; the weights alone are 3 MB, and no output is of use without all of them
    "metrics/metrics.json",
    "metrics/metrics.safetensors",
    "dataset/dataset.json",
    "dataset/*.zip",
    "dataset/source/**/*.*",
)

TRIMMED: dict[str, Rule] = {
    # The unconditional network has every feature but labels (multi-head attention, clipping, a longer filter), and
    # both loss modes; labels are covered by `train` and `sampler`.
    "net/uncond_multihead.safetensors": either(
        matching("state/*", "in/*", "eval/*", "loss/*", "loss_*/sigma", "loss_*/logvar", "loss_*/loss_*"),
        matching("loss_train/D_x", "loss_train/grad_x"),
        small(192, "loss_train/grad/*", "loss_train/state_after/*"),
        small(32, "loss_eval/grad/*"),
    ),
    # The starting point of all runs, the inputs of this one and where it ends.
    "train/main.safetensors": either(
        matching("state0/*", "step/images", "step/labels", "step/rnd_normal", "step/unit_noise"),
        matching("step/l*", "step/grad_norm", "step/ema_beta", "step/cur_nimg_after", "step/sigma", "adam_*"),
        small(512, "after_step_10/*", "ema_*/*", "before_optimizer_step_2/*", "grad_step_2/*"),
    ),
    # Two accumulation rounds: the same, with the final state only.
    "train/accum2.safetensors": either(
        matching("step/images", "step/labels", "step/rnd_normal", "step/unit_noise", "step/lr", "step/loss_per_image"),
        matching("step/grad_norm", "step/ema_beta", "step/cur_nimg_after", "step/sigma"),
        small(512, "after_step_10/*", "ema_*/*"),
    ),
    # Every option of the sampler once with the closed-form denoiser (mostly in float64, where the tolerance is
    # tightest), all runs of the networks, all runs from seeds.
    "sampler/sampler.safetensors": either(
        matching("gmm/*", "net/*", "gnet/*", "net_*", "seeds_*", "draws/*"),
        matching("gmm_s2_*", "gmm_s8_float64/*", "gmm_s8_g_float64/*", "gmm_s8_g0_float32/*", "gmm_s8_churn_float64/*"),
        matching("gmm_s18_churn_float32/*", "gmm_s18_sched_float32/*"),
    ),
    # The last snapshots whole, because they have outputs to compare with; of the others the small tensors, enough to
    # see that each is read and combined. Pickles are left out: tests write some that look like them.
    "checkpoints/snapshots.safetensors": either(matching("*-0000005-0.*"), small(512, "*")),
    "checkpoints/phema_reconstructions.safetensors": small(512, "*"),
    # What the reader makes of all archives; of the one of latents the decoded pictures are left out.
    "dataset/dataset.safetensors": either(
        matching("dhariwal/*", "crop/*", "wide/*", "scale/*", "from_zip/*", "flat/*", "rgb/*", "standin_vae/*"),
        matching("latents/eps", "latents/final", "latents/onehot", "latents/raw_moments", "latents/vae_decoder_input"),
    ),
}


def trim(source: Path, target: Path, rule: Rule) -> None:
    """Copy the arrays that the rule keeps, and the file's metadata."""
    with safe_open(source, "pt") as file:
        kept = {key: x for key in file.keys() if rule(key, x := file.get_tensor(key))}  # noqa: SIM118
        save_file(kept, target, file.metadata())


def make_compact_set(source: Path, target: Path) -> None:
    """Write the selection from the golden set in folder `source` into folder `target`."""
    for pattern in COPIED:
        for path in sorted(source.glob(pattern)):
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    for name, rule in TRIMMED.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        trim(source / name, target / name, rule)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the compact golden set from the full one.")
    parser.add_argument("source", type=Path, help="folder of the full set")
    parser.add_argument("target", type=Path, nargs="?", default=Path(__file__).parent, help="default: here")
    arguments = parser.parse_args()
    make_compact_set(arguments.source, arguments.target)
