"""MLflow: a database in the run's directory, or the server that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import write_atomically

EXPERIMENT = "swave"
LONGEST = 500  # characters of a parameter's value; MLflow refuses more than 6,000


class MlflowRun:
    """A run of MLflow 3. Its identity is in mlflow/id, so a resumed run is the same run; after a kill, repeated steps
    have two points. Without MLFLOW_TRACKING_URI everything is in RUN/mlflow: `mlflow ui --backend-store-uri
    sqlite:///RUN/mlflow/mlflow.db` shows it."""

    def __init__(self, directory: Path, settings: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        folder = (directory / "mlflow").absolute()
        folder.mkdir(exist_ok=True)
        local = None if "MLFLOW_TRACKING_URI" in os.environ else f"sqlite:///{folder}/mlflow.db"
        self._client, file = MlflowClient(tracking_uri=local), folder / "id"
        if file.exists():
            self._id = file.read_text().strip()
            self._client.set_terminated(self._id, "RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        pictures = (folder / "artifacts").as_uri() if local else None  # a server knows its own place
        experiment = found.experiment_id if found else self._client.create_experiment(name, pictures)
        self._id = self._client.create_run(experiment, run_name=directory.name).info.run_id
        values = [Param(key, str(value)[:LONGEST]) for key, value in settings.items()]
        for start in range(0, len(values), 100):  # so many are allowed at once
            self._client.log_batch(self._id, params=values[start : start + 100])
        write_atomically(file, self._id)

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def picture(self, step: int, name: str, png: bytes) -> None:
        from PIL import Image

        self._client.log_image(self._id, Image.open(io.BytesIO(png)), key=name, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)
