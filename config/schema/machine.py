"""Settings of DeepSpeed and of the launcher."""

from __future__ import annotations

from typing import Annotated, Literal

from config.schema.ranges import AtLeastOne, Auto, Free, NotNegative, Range, ZeroOrMore
from config.schema.setting import SPEED, Section, setting

ROUNDING = "losses change by rounding"
LAUNCH = "from this start on"


class Engine(Section):
    """DeepSpeed: ZeRO, precision, and how a batch goes through the network."""

    stage: Literal["auto"] | Annotated[int, Range(ge=0, le=3)] = setting(
        "auto",
        "of ZeRO; several GPUs take 1 (until `make gpu-check` has timed the stages on one), all else 0",
        resume=f"the state is divided again; {ROUNDING}",
        expected="auto, 0, 1, 2 or 3",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto",
        "bf16: autocast; fp16: fp32 masters, dynamic loss scale",
        resume="training goes on in the new precision",
    )
    accumulation: AtLeastOne = setting(
        1,
        "parts of the batch that go through the network one after the other, in one step",
        resume="each part has its own codes, so losses change",
    )
    clipping: NotNegative = setting(
        0.0, "largest norm of the gradient; 0: no clipping", resume="the new limit holds from now on"
    )
    offload: bool = setting(
        False,
        "optimizer state and master weights in the machine's memory (stages 1 to 3)",
        resume=ROUNDING,
    )
    sync_batch_norm: Auto | Annotated[int, Range(ge=0, unit="processes")] = setting(
        "auto",
        "processes over which batch norm takes its statistics; 0: all, 1: each by itself",
        resume="batch norm's statistics change, and losses with them",
    )
    activation_checkpointing: bool = setting(
        False, "compute the backbone's activations again in backward, instead of keeping them", resume=ROUNDING
    )
    compile: bool = setting(
        False, "torch.compile of backbone and projection head; a wrong gradient ends the start", resume=ROUNDING
    )
    cuda_graphs: bool = setting(
        False, "with compile on a GPU: replay the graphs, so that the host launches each as a whole", resume=ROUNDING
    )
    bucket_size: Auto | AtLeastOne = setting(
        "auto", "elements of gradients that are communicated at once", resume=ROUNDING
    )
    max_skipped_steps: AtLeastOne = setting(
        50, "the run ends after so many steps in a row with fp16 overflow", resume="the new limit holds from now on"
    )
    wall_clock_breakdown: bool = setting(False, "DeepSpeed's own timers", resume=SPEED)
    comms_logger: bool = setting(
        False,
        "counts collectives; waits for each, so its times mislead",
        resume=SPEED,
    )
    deepspeed: Free = setting(
        {}, "anything more for DeepSpeed's configuration", resume="DeepSpeed takes the new configuration"
    )


class Launch(Section):
    """How `make train` starts and watches the processes."""

    timeout: Annotated[int, Range(ge=1, unit="second"), Range(le=31_536_000, unit="seconds")] = setting(
        1800, "seconds that a process waits for the others before that counts as a hang", resume=LAUNCH
    )
    restarts: ZeroOrMore = setting(0, "new starts after failures, from the last checkpoint", resume=LAUNCH)
    backoff: ZeroOrMore = setting(
        5, "seconds before the first new start; doubled for each next one, 300 at most", resume=LAUNCH
    )
    elastic: bool = setting(
        False,
        "go on without nodes that no longer answer; engine.accumulation keeps the batch",
        resume=LAUNCH,
    )
