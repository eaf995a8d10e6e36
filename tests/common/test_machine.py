"""The devices that a user lets processes see."""

import pytest

from common.machine import devices_of_processes, environment_of_rank, visible_devices, visible_gpu_names


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        (None, None),
        ("", []),
        ("0", ["0"]),
        ("2,3", ["2", "3"]),
        (" 2 , 3 ", ["2", "3"]),
        ("-1", []),
        ("1,-1,2", ["1"]),
        ("GPU-8932f937,GPU-1a2b3c4d", ["GPU-8932f937", "GPU-1a2b3c4d"]),
        ("MIG-GPU-8932f937/1/2", ["MIG-GPU-8932f937/1/2"]),
        ("NoDevFiles", []),  # SLURM's word for none
    ],
)
def test_visible_devices_are_those_that_cuda_would_see(text, devices):
    assert visible_devices({} if text is None else {"CUDA_VISIBLE_DEVICES": text}) == devices


@pytest.mark.parametrize(
    ("processes", "text", "devices"),
    [
        (2, None, ["0", "1"]),
        (2, "2,3", ["2", "3"]),
        (1, "2,3", ["2"]),
        (2, "GPU-8932f937,GPU-1a2b3c4d", ["GPU-8932f937", "GPU-1a2b3c4d"]),
        (2, "", ["-1", "-1"]),  # the user hides all GPUs: two processes on the CPU
        (3, "2,3", ["2", "3", "-1"]),  # more processes than devices: no process gets one that the user left out
    ],
)
def test_each_process_gets_a_device_that_the_user_chose(processes, text, devices):
    environment = {} if text is None else {"CUDA_VISIBLE_DEVICES": text}
    assert devices_of_processes(processes, environment) == devices


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (None, ["A100", "H100"]),
        ("1", ["H100"]),
        ("1,0", ["H100", "A100"]),
        ("0,7,1", ["A100"]),  # as in CUDA, the list ends at a number that no GPU has
        ("", []),
        ("GPU-8932f937", ["A100"]),
        ("MIG-a,MIG-b,MIG-c", ["A100"] * 3),  # more than there are GPUs
    ],
)
def test_visible_gpus_are_those_of_the_list(text, names):
    environment = {} if text is None else {"CUDA_VISIBLE_DEVICES": text}
    assert visible_gpu_names(["A100", "H100"], environment) == names
    assert visible_gpu_names([], environment) == []


@pytest.mark.parametrize(
    ("text", "local_rank", "own"),
    [("2,3", "1", "2,3"), ("GPU-a,GPU-b", "1", "GPU-a,GPU-b"), ("MIG-a,MIG-b", "1", "MIG-b"), (None, "1", None)],
)
def test_a_rank_sees_its_own_mig_device_alone(text, local_rank, own):
    environment = {"LOCAL_RANK": local_rank} | ({} if text is None else {"CUDA_VISIBLE_DEVICES": text})
    assert environment_of_rank(environment).get("CUDA_VISIBLE_DEVICES") == own
