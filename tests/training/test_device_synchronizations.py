"""DeepSpeed does not synchronize the device in our steps: on a GPU this would drain its queue each time."""

import json
import os
import traceback
from collections import Counter

import pytest

from perf.ranks import run_ranks
from perf.zero_ranks import Case, Training

WARM, COUNTED = 2, 3  # steps
CASES = [Case(stage, 2, precision, tiny=True) for stage in (0, 1, 2) for precision in ("fp32", "bf16")]


def count_synchronizations(rank, folder):
    """As a rank: the calls of the accelerator's `synchronize` in COUNTED steps of each case, by their callers."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.comm import comm

    from training.distributed import Cluster, connected

    callers = Counter()

    def synchronize(self, *_):
        frames = [f for f in traceback.extract_stack()[:-1] if "deepspeed" in f.filename and "nvtx" not in f.filename]
        callers[" < ".join(f"{os.path.basename(f.filename)}:{f.lineno}" for f in reversed(frames[-3:]))] += 1

    type(get_accelerator()).synchronize = synchronize
    cluster, results = Cluster(rank, 2, rank, 2), []
    with connected(cluster):
        for case in CASES:
            training = Training(case, cluster)
            for step in range(WARM):
                training.step(step)
            callers.clear()
            for step in range(WARM, WARM + COUNTED):
                training.step(step)
            results.append({"stage": case.stage, "precision": case.precision, "callers": dict(callers)})
    if rank == 0:
        (folder / "found.json").write_text(json.dumps({"cases": results, "logger": comm.comms_logger.enabled}))


@pytest.mark.slow
def test_deepspeed_does_not_synchronize_in_a_step(tmp_path):
    run_ranks(count_synchronizations, 2, tmp_path)
    results = json.loads((tmp_path / "found.json").read_text())
    assert [case for case in results["cases"] if case["callers"]] == []
    assert len(results["cases"]) == len(CASES)
    assert results["logger"] is False
