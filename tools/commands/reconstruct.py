"""`edm2 reconstruct`: weights of any EMA length from a run's snapshots."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2.tools.options.parsing import (
    BYTES,
    FOLDER,
    GROUP,
    IMAGES,
    PARAMETER_COUNT,
    PRECISION,
    SIGMA_RELS,
    TRACKED,
)

if TYPE_CHECKING:
    import torch

    from edm2.post_hoc_ema.foreign.facts import Facts
    from edm2.post_hoc_ema.reconstruction import Reconstruction

LONG_FOR_FACTORS = 0.15
"""EMA length up to which an average of a LoRA's factors errs by less than 1 %."""

EPILOG = """\b
Examples:
  # Three lengths at the end of the run
  edm2 reconstruct runs/mine --std 0.05,0.10,0.15
\n\b
  # Twenty-five lengths, one million images into it
  edm2 reconstruct runs/mine --std 0.01,0.02,...,0.25 --at 1Mi --out early/
\n\b
  # From network pickles of the published program (network-snapshot-0008388-0.050.pkl, ...)
  edm2 reconstruct published/ --std 0.135
\n\b
  # From checkpoints of any trainer: model_500.safetensors, checkpoint-500/, epoch=1-step=500.ckpt, ...
  edm2 reconstruct output/ --std 0.05,0.10,0.15 --plan
\n\b
  # Fine-tuning that began at step 100000; averages of constant decay; long averages of a LoRA
  edm2 reconstruct finetune/ --std 0.10 --clock-from 100000
  edm2 reconstruct output/ --std 0.10 --decay 0.9999
  edm2 reconstruct lora/ --std 0.25 --lora product
\n\b
  # From files of ema-pytorch (0.1000.pt, 1.1000.pt, ...), which were updated every 100 steps
  edm2 reconstruct post-hoc-ema-checkpoints/ --std 0.10 --tracked 0.05,0.10 --update-every 100
\n\b
  # How large would the errors be? Nothing is written
  edm2 reconstruct runs/mine --std 0.01,0.02,...,0.25 --plan
\n\b
  # Before training: how many snapshots to keep, and how much disk they take
  edm2 reconstruct --plan --std 0.03,0.10,0.20 --interval 8Mi --duration 2Gi --parameters 280M
\n\b
  # Another length for the embeddings' gains; many lengths for all tensors of the embeddings, 0.13 for the rest
  edm2 reconstruct runs/mine --std 0.13 --std-for "*.emb_gain=0.05" --out emb/
  edm2 reconstruct runs/mine --std 0.05,0.07,...,0.21 --std-for "!*.emb_*=0.13" --out emb/
"""


@click.command(epilog=EPILOG)
@click.argument("run", metavar="[FOLDER]", type=FOLDER, required=False)
@click.option(
    "--std", "--sigma-rel", "sigma_rels", type=SIGMA_RELS, required=True, help="EMA lengths: 0.05,0.1,...,0.25"
)
@click.option("--at", type=IMAGES, help="Time in images seen, one with snapshots; default: the last.")
@click.option("--out", type=FOLDER, help="Folder to write to.  [default: FOLDER/reconstructed]")
@click.option("--std-for", "groups", type=GROUP, multiple=True,
              help="Another EMA length for the tensors whose names match a pattern (with ! before it: do not match); "
              "repeatable, the first match counts.")  # fmt: skip
@click.option("--method", type=click.Choice(["tails", "density"]), default="tails", show_default=True,
              help="Coefficients: of the smallest expected error, or the paper's Algorithm 3.")  # fmt: skip
@click.option("--tracked", type=TRACKED, help="Files of ema-pytorch: the lengths that it tracked, in its order.")
@click.option(
    "--update-every", type=click.IntRange(1), help="Files of ema-pytorch, and --decay: steps between updates."
)
@click.option("--decay", type=click.FloatRange(0, 1, True, True),
              help="Files hold averages of this constant decay; default: plain weights.")  # fmt: skip
@click.option("--part", help="Subfolder of each checkpoint, or entry of each file, that holds the weights.")
@click.option("--clock-from", type=IMAGES, default="0", show_default=True, help="Time at which fine-tuning began.")
@click.option("--lora", type=click.Choice(["factors", "product", "stack"]), default="factors", show_default=True,
              help="Average a LoRA's factors; their product, at its rank; that exactly, at a higher one.")  # fmt: skip
@click.option("--dtype", type=PRECISION, default="fp32", show_default=True, help="Precision of the results.")
@click.option("--memory", type=BYTES, default="4G", show_default=True, help="Memory to use at most.")
@click.option("--threads", type=click.IntRange(1), help="Threads to use; default: one per core, at most 8.")
@click.option("--plan", is_flag=True, help="Print the errors only; without FOLDER, those of a run to come.")
@click.option("--interval", type=IMAGES, default="8Mi", show_default=True, help="--plan: images between snapshots.")
@click.option("--duration", type=IMAGES, default="2Gi", show_default=True, help="--plan: images of the run.")
@click.option(
    "--parameters", type=PARAMETER_COUNT, default="100M", show_default=True, help="--plan: size of the network."
)
def reconstruct(
    run: Path | None,
    sigma_rels: list[float],
    at: int | None,
    out: Path | None,
    groups: Sequence[tuple[str, float]],
    method: str,
    tracked: list[float] | None,
    update_every: int | None,
    decay: float | None,
    part: str | None,
    clock_from: int,
    lora: str,
    dtype: str,
    memory: int,
    threads: int | None,
    plan: bool,
    interval: int,
    duration: int,
    parameters: int,
) -> None:
    """Choose the EMA length after training.

    Combines the files in FOLDER (a run folder, or a folder of snapshots, of published network pickles, or of another
    trainer's checkpoints) to the weights that an average of each given length would have had. A length is the standard
    deviation of the average's profile over time, as a fraction of the training so far: more than 0, less than 0.2887.

    The profile column says how far the reconstructed average is from the exact one, as a share of how far the last
    weights are from it; more snapshots, or lengths nearer to the stored ones, lower it. The weights column is the error
    to expect in the weights, rounding of the files included; noise, the factor by which that grows.
    """
    from edm2.tools.reports.reconstruction import print_errors, print_storage_plan, warn_of_missing

    if run is None:
        if not plan:
            raise click.UsageError("Missing argument 'FOLDER'.")
        if interval > duration:
            raise click.BadParameter(f"{interval} is longer than the run of {duration}", param_hint="'--interval'")
        print_storage_plan(sigma_rels, interval, duration, parameters)
        return
    from edm2.io.snapshots import refuse_different_runs
    from edm2.post_hoc_ema import reconstruct_files, select_snapshots
    from edm2.post_hoc_ema.foreign.facts import Facts
    from edm2.post_hoc_ema.foreign.rebuilding import wanted_profile
    from edm2.post_hoc_ema.reconstruction import THREADS, Reconstruction
    from edm2.tools.progress import progress_bar
    from edm2.training.config import DTYPES

    facts = Facts(update_every=update_every, tracked=tracked or (), decay=decay, clock_from=clock_from, part=part)
    snapshots = _open(run, facts, plan)
    try:
        used = select_snapshots(snapshots, at)
        warn_of_missing(used, "the errors below allow for it")
        refuse_different_runs(used)
        time = used[0].images_seen
        targets = [wanted_profile(time, s, clock_from) for s in sigma_rels]
        targets_of = {pattern: wanted_profile(time, s, clock_from) for pattern, s in groups}
        paths = [_path(out or run / "reconstructed", used[0], s) for s in sigma_rels]
        threads = threads or THREADS
        # Refuse what cannot be combined, and too little memory, before the table is printed.
        reconstruction = Reconstruction(used, targets, groups=targets_of, method=method)
        _check_lora(used[0].names, lora, max(sigma_rels))
        if not plan:
            reconstruction.resources(reconstruction.layouts(), memory, threads)
        print_errors(reconstruction, sigma_rels, paths)
        if plan:
            return
        metadata = [_metadata(used, s, method, dict(groups), clock_from) for s in sigma_rels]
        _write_adapter_configs(paths, used, lora)
        if lora != "factors":
            _write_products(reconstruction, lora, paths, metadata, DTYPES[dtype])
            return
        with progress_bar(unit="weights") as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            reconstruct_files(
                used, targets, paths, metadata, groups=targets_of, method=method, dtype=DTYPES[dtype], memory=memory,
                threads=threads, progress=show,
            )  # fmt: skip
    except ValueError as error:
        text = str(error)
        raise ValueError(text if str(run) in text else f"{run}: {text}") from None


def _open(run: Path, facts: "Facts", plan: bool) -> Sequence[Any]:
    """Open the files of a run or of another program; of the latter, print what they are taken for."""
    from edm2.io.snapshots import open_run
    from edm2.post_hoc_ema.foreign.recognition import recognize
    from edm2.tools.reports.reconstruction import print_recognized

    if found := recognize(run, facts):
        print_recognized(found, one_by_one=plan)
        return found.snapshots
    if facts.tracked or facts.update_every or facts.decay or facts.part:
        raise click.UsageError(
            f"{run} holds snapshots of edm2 or of the published program, which tell their profiles; --tracked, "
            "--update-every, --decay and --part are for files of other programs"
        )
    return open_run(run)


def _path(folder: Path, newest: Any, sigma_rel: float) -> Path:
    """Path of a result: a file, or the folder of one that PEFT reads."""
    from edm2.tools.reports.reconstruction import reconstructed_name

    path = folder / reconstructed_name(newest.images_seen, sigma_rel)
    return path.with_suffix("") / "adapter_model.safetensors" if getattr(newest, "adapter", None) else path


def _metadata(
    used: Sequence[Any], sigma_rel: float, method: str, groups: dict[str, float], clock_from: int
) -> dict[str, Any]:
    """Metadata of a result."""
    from edm2.io.model import reconstructed_metadata
    from edm2.post_hoc_ema import power_profile

    time = used[0].images_seen
    profile = {"profile": power_profile(time, sigma_rel, clock_from).to_json()} if clock_from else {}
    lengths = {"sigma_rel_of": groups} if groups else {}
    return reconstructed_metadata(used[::-1], time, sigma_rel, method) | lengths | profile


def _check_lora(names: Sequence[str], form: str, longest: float) -> None:
    """Refuse products of what are no LoRAs; advise them where lengths are long."""
    from edm2.post_hoc_ema.foreign.lora import factor_names

    if form != "factors":
        factor_names(names)
    elif longest > LONG_FOR_FACTORS and any("lora" in name.lower() for name in names):
        click.echo(f"A LoRA: over lengths above {LONG_FOR_FACTORS}, --lora product is more exact.")


def _write_adapter_configs(paths: Sequence[Path], used: Sequence[Any], form: str) -> None:
    """Write what PEFT reads beside its tensors."""
    from edm2.post_hoc_ema.foreign.lora import write_adapter_config

    if config := getattr(used[0], "adapter", None):
        for path in paths:
            write_adapter_config(path.with_name("adapter_config.json"), config, len(used) if form == "stack" else 1)


def _write_products(
    reconstruction: "Reconstruction",
    form: str,
    paths: Sequence[Path],
    metadata: Sequence[dict[str, Any]],
    dtype: "torch.dtype",
) -> None:
    """Write averages of LoRAs by their products, which are small."""
    from edm2.post_hoc_ema import write_snapshot
    from edm2.post_hoc_ema.foreign.lora import combine_products

    for path, state, said in zip(paths, combine_products(reconstruction, form), metadata, strict=True):
        write_snapshot(path, state, said, dtype)
