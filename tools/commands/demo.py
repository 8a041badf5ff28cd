"""`edm2 demo`: train on real data, sweep the EMA length and sample, in minutes."""

from pathlib import Path

import click

from edm2.tools.options.parsing import FOLDER, SEED

SIGMA_RELS = "0.02,0.04,...,0.24"
SAMPLES = 500
STEPS = 18

EPILOG = """\b
Example:
  edm2 demo --out demo
"""


@click.command(epilog=EPILOG)
@click.option("--out", type=FOLDER, default="demo", show_default=True, help="Folder to write to.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the run.")
@click.pass_context
def demo(context: click.Context, out: Path, seed: int) -> None:
    """Train on handwritten digits, choose the EMA length, draw samples, show all on one page.

    Takes minutes on two CPU cores and downloads nothing. If interrupted, run it again to go on. Writes a run folder,
    samples.png, sweep.png, sweep.csv, loss.png, best.safetensors and, with the extra `report`, report.html.
    """
    import torch

    from edm2.io.model import reconstructed_metadata, save
    from edm2.metrics import load_detector
    from edm2.planning.plan import plan_run
    from edm2.report.page import ReportError
    from edm2.sweep.averages import Averages
    from edm2.sweep.evaluator import SampleSettings, evaluator_by
    from edm2.sweep.score_cache import ScoreCache
    from edm2.sweep.sweep import Range, Sweeper
    from edm2.tools.commands.report import report
    from edm2.tools.figures.progress import draw_holdout
    from edm2.tools.figures.runs import open_runs
    from edm2.tools.figures.style import save_figure
    from edm2.tools.figures.sweep import plot_sweep
    from edm2.tools.options.parsing import parse_sigma_rels
    from edm2.tools.progress import progress_bar
    from edm2.tools.reports.tables import print_sweep, write_sweep
    from edm2.tools.run import draw_samples, run_training
    from edm2.training import codec_from_json, open_dataset

    run = out / "run"
    click.echo(f"1. Train:  edm2 train --data digits --preset digits8 --seed {seed} --out {run}")
    dataset = open_dataset("digits")
    run_training(plan_run(dataset, "digits", str(run), "digits8", None, {"seed": seed}), dataset)
    save_figure(draw_holdout(open_runs({"run": run})), out / "loss.png")

    click.echo("\n2. Score EMA lengths:")
    click.echo(f"   edm2 sweep {run} --std {SIGMA_RELS} --samples {SAMPLES} --steps {STEPS} --out {out}")
    averages = Averages(run)
    codec = codec_from_json(averages.metadata["codec"])
    evaluator = evaluator_by(dataset, load_detector("pixels"))
    sweeper = Sweeper(averages, codec, evaluator, SampleSettings(SAMPLES, STEPS), known=ScoreCache(out / "sweep.jsonl"))
    sweep = sweeper.sweep(Range([averages.last], parse_sigma_rels(SIGMA_RELS)), dataset, progress=progress_bar)
    write_sweep(out / "sweep.csv", sweep)
    plot_sweep(out / "sweep.png", sweep)
    print_sweep(sweep)

    best = sweep.best
    sigma_rel = best.point.sigma_rel
    click.echo("\n3. Keep the best, and sample from it:")
    click.echo(f"   edm2 reconstruct {run} --std {sigma_rel:g}")
    click.echo(f"   edm2 generate {out / 'best.safetensors'} --seeds 0-79 --grid digits.png")
    [net] = averages.networks(averages.last, [sigma_rel])
    metadata = reconstructed_metadata(averages.snapshots, averages.last, sigma_rel)
    save(net, out / "best.safetensors", metadata, dtype=torch.float16)
    draw_samples(net, codec, out / "samples.png", rows=8, num_steps=STEPS)

    page = out / "report.html"
    click.echo("\n4. Look at all of it, and move a slider over the EMA lengths:")
    click.echo(f"   edm2 report digits={run} --sweep {out} --steps {STEPS} --images 20 --out {page}")
    try:
        context.invoke(report, runs=(f"digits={run}",), swept=out, out=page, num_steps=STEPS, images=20)
        pages = [(page.name, "all of this on one page: open it in a browser")]
    except ReportError as error:
        click.echo(f"Left out: {error}")
        pages = []

    score = best.score
    click.echo(f"\nBest EMA length: {sigma_rel:g}, with Frechet distance {score.distance:.4f}", nl=False)
    click.echo(f" and class accuracy {score.accuracy:.3f}. Look at:")
    for name, content in (
        *pages,
        ("samples.png", "ten classes, eight of each"),
        ("sweep.png", "quality against EMA length"),
        ("loss.png", "how the loss fell"),
        ("best.safetensors", "the best network; `edm2 info` describes it"),
    ):
        click.echo(f"  {out / name!s:<26}  {content}")
