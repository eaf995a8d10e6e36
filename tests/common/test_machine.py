"""The devices that a user lets processes see."""

import pytest

from common.machine import devices_of_processes, visible_devices


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
        (2, "", ["0", "1"]),  # no GPU: two processes on the CPU
        (
            3,
            "2,3",
            ["0", "1", "2"],
        ),  # more processes than devices: CUDA reports it
    ],
)
def test_each_process_gets_a_device_that_the_user_chose(processes, text, devices):
    environment = {} if text is None else {"CUDA_VISIBLE_DEVICES": text}
    assert devices_of_processes(processes, environment) == devices
