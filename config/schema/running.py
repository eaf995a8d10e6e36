"""Settings of a run as a whole: its length, checkpoints, profile and evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from config.every import EXAMPLES, is_every
from config.schema.ranges import AtLeastOne, Auto, FilePath, Holds, Positive, Range, ZeroOrMore
from config.schema.setting import SPEED, Section, setting

NOW = "from now on"
EVALUATIONS = "later evaluations use it"

Interval = Annotated[str, Holds(is_every, f"such as {EXAMPLES}")]


class Run(Section):
    """The run as a whole."""

    directory: FilePath = setting(
        "runs/default",
        "config, metrics, checkpoints and summary go here; the same command again resumes",
        resume="the directory may have moved",
    )
    epochs: Annotated[int, Range(ge=1), Range(le=100_000)] = setting(
        100,
        "passes over the images",
        resume="the run gets longer or shorter; learning rates follow the new length",
    )
    batch_size: AtLeastOne = setting(256, "images a step, over all processes")
    seed: Annotated[int, Range(ge=0, le=2**32 - 1)] = setting(31, "of weights, order and crops")
    log_every: AtLeastOne = setting(10, "steps between lines of metrics.jsonl", resume=NOW)
    loggers: list[Literal["tensorboard", "wandb", "mlflow", "csv"]] = setting(
        ["tensorboard"],
        "where figures and pictures go as well, each offline or in the run's directory; [] for nowhere",
        resume=NOW,
        expected="a list of tensorboard, wandb, mlflow, csv",
    )


class Checkpoint(Section):
    """When to save, besides at the end and on SIGTERM, SIGINT and SIGUSR1."""

    every: Interval = setting("1 epoch", "epochs, steps or minutes from one to the next", resume=NOW)
    keep: AtLeastOne = setting(2, "how many of the newest stay", resume=NOW)
    keep_epochs: ZeroOrMore = setting(0, "those of every n-th epoch stay for good; 0: the newest only", resume=NOW)


class Perf(Section):
    """A profile of some steps of the run."""

    profile: bool = setting(
        False,
        "where the time of some steps goes, on all processes: profile.json and a trace",
        resume="this start is profiled",
    )
    steps: AtLeastOne = setting(20, "how many steps are profiled", resume="the next profile takes them")
    skip: ZeroOrMore = setting(5, "steps before them, counted from this start", resume="the next profile takes them")


class Evaluation(Section):
    """k-NN on the backbone's features, where there are labels."""

    every: ZeroOrMore = setting(0, "epochs between evaluations; 0: at the end only", resume=NOW)
    k: AtLeastOne = setting(20, "neighbors that vote", resume=EVALUATIONS)
    temperature: Positive = setting(0.07, "of the votes' weights", resume=EVALUATIONS)
    size: Auto | AtLeastOne = setting(
        "auto", "pixels of the central crop; auto: the first crops' size", resume=EVALUATIONS
    )
    share: Annotated[float, Range(gt=0, le=1, what="a share")] = setting(
        0.875, "of the shorter side that the central crop takes", resume=EVALUATIONS
    )
    batch_size: AtLeastOne = setting(256, "images a step and process", resume=SPEED)
    max_train: ZeroOrMore = setting(
        0, "images of the training set to compare with; 0: all", resume="later evaluations use so many"
    )
    watched: Auto | ZeroOrMore = setting(
        "auto",
        "images of the training set that report.html shows, and that measures without labels take after an epoch",
        resume=EVALUATIONS,
    )
    probe: bool = setting(
        False,
        "a linear classifier that learns the labels next to the network",
        resume="the probe starts anew, or is dropped",
    )
