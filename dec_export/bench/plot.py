"""A chart of a bench report."""

from __future__ import annotations

import io
from pathlib import Path

from dec_export.bench.report import BenchReport
from dec_export.files import write_atomically


def plot(report: BenchReport, path: Path) -> None:
    """Draw the medians and quartiles of every subject at every batch, in milliseconds for one image, to `path`.

    The suffix of `path` selects the format: .png, .svg or .pdf.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), constrained_layout=True)
    batches = [entry.batch for entry in report.batches]
    for name in report.batches[0].subjects:
        rows = [entry.subjects[name] for entry in report.batches]
        scale = [1e3 / batch for batch in batches]
        medians = [row.median * s for row, s in zip(rows, scale, strict=True)]
        below = [m - row.quartile_low * s for m, row, s in zip(medians, rows, scale, strict=True)]
        above = [row.quartile_high * s - m for m, row, s in zip(medians, rows, scale, strict=True)]
        axes.errorbar(batches, medians, yerr=[below, above], marker="o", capsize=3, label=name)
    axes.set(
        xlabel="batch",
        ylabel="milliseconds for one image",
        xscale="log",
        yscale="log",
        title=f"{report.recipe}, {report.precision}, {report.threads} threads",
    )
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.removeprefix("."))
    pyplot.close(figure)
    write_atomically(path, picture.getvalue())
