"""Tells scripts that restart a run whether it is done.

    python -m launch.done RECIPE.yaml [key=value ...]

Exit code 0: done, the run's directory holds summary.json. 1: not done yet. 2: a mistake in the settings.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from common.cli import exit_on_mistake
from config.recipe import ROOT, load_config


def main(arguments: Sequence[str]) -> int:
    with exit_on_mistake():
        return 0 if is_done(arguments) else 1


def is_done(settings: Sequence[str]) -> bool:
    """Whether the run with this recipe and settings has finished. Raises ConfigError."""
    return (ROOT / Path(load_config(settings).run.directory) / "summary.json").exists()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
