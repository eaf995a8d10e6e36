"""What a check measures on: the GPUs, or a CPU at toy size."""

from __future__ import annotations

from dataclasses import dataclass

from config.recipe import ROOT

RECIPE = str(ROOT / "config" / "folder.yaml")
BATCH = 128  # images a GPU


@dataclass(frozen=True)
class Setup:
    """What to measure on: `gpus` with `batch` images each. The rest makes it small, for tests on a CPU.

    changes: settings of the step's recipe. states, steps: of perf.zero_check's comparisons. images, seconds: of the
    loader. folder: for made images.
    """

    gpus: int
    batch: int = BATCH
    on_gpu: bool = True
    changes: tuple[str, ...] = ()
    states: int = 20
    steps: int = 200
    images: int = 512
    seconds: float = 8.0
    folder: str = "data/bench"
    recipe: str = RECIPE
