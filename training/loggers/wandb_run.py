"""Weights & Biases, offline unless WANDB_MODE says otherwise: `wandb sync RUN/wandb/offline-run-*` uploads it later."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import write_atomically

PROJECT = "swave"


class WandbRun:
    """A run of wandb >= 0.19. Its identity is in wandb/id, so a resumed run is the same run: it writes a further
    offline folder, and `wandb sync` puts both into one run. Curves are over the training step, an own axis, because
    wandb's count of calls may not go back and a run that was killed repeats some steps. A kill loses what wandb has not
    written yet; a signal, on which swave saves, does not."""

    def __init__(self, directory: Path, settings: Mapping[str, Any]) -> None:
        import wandb

        self._wandb, file = wandb, directory / "wandb" / "id"
        file.parent.mkdir(exist_ok=True)
        if not file.exists():
            write_atomically(file, uuid.uuid4().hex)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=directory.name,
            id=file.read_text().strip(),
            dir=str(directory),
            mode=os.environ.get("WANDB_MODE", "offline"),
            resume="allow",
            config=dict(settings),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
        )
        self._run.define_metric("*", step_metric="step")

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def picture(self, step: int, name: str, png: bytes) -> None:
        from PIL import Image

        self._run.log({name: self._wandb.Image(Image.open(io.BytesIO(png))), "step": step})

    def close(self) -> None:
        self._run.finish()
