"""The figure of `edm2 autoguide`: distance of each method at its best settings, with its spread over seeds."""

from pathlib import Path

import matplotlib.pyplot as plt

from edm2.sweep.autoguidance import Comparison
from edm2.tools.figures.style import BLUE, GRAY, ORANGE, save_figure, styled


def plot_guidance(path: Path, comparison: Comparison, title: str, real_data_fd: float | None) -> None:
    """Draw one line per method, the first at the top, and a dotted line for as many real images."""
    rows = comparison.rows
    figure, axes = plt.subplots(figsize=(7.2, 1 + 0.42 * len(rows)), layout="constrained")
    styled(axes)
    for height, row in enumerate(reversed(rows)):
        color = ORANGE if row is comparison.winner else BLUE
        axes.errorbar(row.distance, height, xerr=2 * (row.deviation or 0), fmt="o", color=color, capsize=3)
        axes.annotate(f"{row.distance:.4g}", (row.distance, height), (0, 6), textcoords="offset points", ha="center")
    if real_data_fd is not None:
        axes.axvline(real_data_fd, color=GRAY, linestyle=":", label="as many real images")
        axes.legend(fontsize="small", edgecolor="none")
    axes.set_yticks(range(len(rows)), [f"{row.name} ({sum(row.evaluations)})" for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.2)
    axes.set_xlabel(f"{title} (bars: two standard deviations between sets of seeds)")
    axes.set_title("Guidance, each at its best settings (evaluations per image)")
    save_figure(figure, path)
