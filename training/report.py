"""The closing table of a run."""

from __future__ import annotations

import io
from typing import Any


def closing_table(summary: dict[str, Any]) -> str:
    """The table at the end of a run, from summary.json."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.dataset.accounting import losses

    epochs = f"{summary['epochs']} epoch{'s' * (summary['epochs'] > 1)}"
    table = Table(title=f"{summary['directory']}: {epochs}, {summary['steps']} steps")
    table.add_column("")
    table.add_column("", justify="right")
    if summary["knn"] is not None:
        table.add_row("k-NN accuracy, trained backbone", f"{summary['knn']:.2%}")
        if "knn_teacher" in summary:
            table.add_row("k-NN accuracy, its teacher", f"{summary['knn_teacher']:.2%}")
        if "probe" in summary:
            table.add_row("accuracy of the online probe", f"{summary['probe']:.2%}")
        if summary["knn_random_init"] is not None:  # else the weights with which the run started have gone
            table.add_row("k-NN accuracy, random initialization", f"{summary['knn_random_init']:.2%}")
            table.add_row("k-NN accuracy, raw pixels", f"{summary['knn_raw_pixels']:.2%}")
    else:
        table.add_row("k-NN accuracy", "none: training and test images need classes (sub-folders)")
    used = round(summary["prototypes_in_use"] * summary["prototypes"])
    table.add_row("prototypes in use", f"{used} of {summary['prototypes']}")
    table.add_row("code entropy", f"{summary['code_entropy']:.2f} of {summary['code_entropy_limit']:.2f} nats")
    table.add_row("mean loss of the last epoch", f"{summary['mean_loss']:.4f}")
    table.add_row("images a second in training", f"{summary['images_per_second']:,.0f}")
    table.add_row("wall time", f"{summary['seconds'] / 60:.1f} minutes")
    text = io.StringIO()
    Console(file=text, width=100).print(table)
    return "\n".join([text.getvalue().rstrip(), *losses(summary.get("data", {}))])
