"""The nodes of a run: hostfiles and SLURM's short forms; mistakes in them are one line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cli import UserError
from common.machine import interface_of, interface_to
from common.slurm import expand_counts
from config.recipe import ConfigError
from launch.nodes import Node, expand_hosts, first_nodes, read_hostfile, slurm_nodes


def test_the_interface_of_an_address():
    interfaces = {"lo": ["127.0.0.1", "::1"], "docker0": ["172.17.0.1"], "eth0": ["10.0.0.5", "fe80::1%eth0"]}
    assert interface_of("10.0.0.5", interfaces) == "eth0"
    assert interface_of("10.0.0.6", interfaces) is None
    assert interface_to("127.0.0.1") == "lo"
    assert interface_to("nowhere.invalid") is None


def test_a_hostfile_is_a_line_a_node(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("\ufeffnode1 slots=8   # the big one\r\n\n# and another\n  user@10.0.0.2\n")  # of Windows
    assert read_hostfile(path, 4) == [Node("node1", 8), Node("user@10.0.0.2", 4)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file lists no host"),
        ("# nothing\n\n", "the file lists no host"),
        ("a slots=8\na slots=4\n", "line 2: a is listed twice"),
        ("a slots=0\n", "line 1: 'a slots=0': expected a line like `node1 slots=8`"),
        ("a slots=eight\n", "line 1: 'a slots=eight'"),
        ("a max-slots=8\n", "line 1: 'a max-slots=8'"),
        ("a slots=1 slots=2\n", "line 1: 'a slots=1 slots=2'"),
    ],
)
def test_a_mistake_in_a_hostfile_is_one_line(tmp_path, text, message):
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_hostfile(path, 1)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_hostfile_that_is_not_there_is_one_line():
    with pytest.raises(ConfigError, match=r"HOSTFILE=/no/hosts: No such file or directory"):
        read_hostfile(Path("/no/hosts"), 1)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("login", ["login"]),
        ("a,b", ["a", "b"]),
        ("gpu[01-03,7],login", ["gpu01", "gpu02", "gpu03", "gpu7", "login"]),
        ("n[8-11]", ["n8", "n9", "n10", "n11"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("rack[1-2]n[01,03]-ib", ["rack1n01-ib", "rack1n03-ib", "rack2n01-ib", "rack2n03-ib"]),
        ("tux-[1-2].site.org,x", ["tux-1.site.org", "tux-2.site.org", "x"]),
    ],
)
def test_slurms_node_lists_are_expanded(text, hosts):
    assert expand_hosts(text) == hosts


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "a,,b",
        "a[",
        "a[1-2",
        "a[2-1]",
        "a[x]",
        "a[]",
        "a b",
        "a]",
        "a[٣]",
        "a[1-9999999999]",
        "a[1-999]b[1-999]",
    ],
)
def test_malformed_node_lists_are_refused(text):
    with pytest.raises(ConfigError, match="not a SLURM node list"):
        expand_hosts(text)


@given(st.lists(st.tuples(st.integers(1, 99), st.integers(1, 5)), min_size=1, max_size=6))
def test_slurms_counts_are_expanded(parts):
    text = ",".join(f"{count}(x{times})" if times > 1 else str(count) for count, times in parts)
    assert expand_counts(text) == [count for count, times in parts for _ in range(times)]


@pytest.mark.parametrize("text", ["", "4(x)", "four", "4,(x2)", "4x2", "٣", "4(x9999999999)", "4(x99999),1(x2)"])
def test_malformed_counts_are_refused(text):
    with pytest.raises(UserError, match="not a SLURM list of numbers"):
        expand_counts(text)


SLURM = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n[1-3]"}


@pytest.mark.parametrize(
    ("more", "processes"),
    [
        ({}, [8, 8, 8]),
        ({"SLURM_TASKS_PER_NODE": "1(x3)"}, [8, 8, 8]),  # what SLURM sets if the job does not ask for tasks
        ({"SLURM_NTASKS_PER_NODE": "4"}, [4, 4, 4]),
        ({"SLURM_NTASKS": "9", "SLURM_TASKS_PER_NODE": "4(x2),1"}, [4, 4, 1]),
    ],
)
def test_slurms_allocation_gives_nodes_and_processes(more, processes):
    assert slurm_nodes(SLURM | more, 8) == [Node(f"n{i + 1}", count) for i, count in enumerate(processes)]


def test_outside_of_slurm_there_is_no_allocation():
    assert slurm_nodes({}, 8) is None
    step = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "1", "SLURM_TASKS_PER_NODE": "1"}  # a step of one task
    assert slurm_nodes(SLURM | step, 8) == slurm_nodes(SLURM, 8)
    assert slurm_nodes({"SLURM_JOB_NODELIST": "n1"}, 8) is None


def test_an_allocation_that_contradicts_itself_is_an_error():
    with pytest.raises(ConfigError, match="has 3 nodes, SLURM_TASKS_PER_NODE=4 has 1"):
        slurm_nodes(SLURM | {"SLURM_NTASKS": "4", "SLURM_TASKS_PER_NODE": "4"}, 8)
    with pytest.raises(ConfigError, match="SLURM_NTASKS_PER_NODE=many in the environment is not a number"):
        slurm_nodes(SLURM | {"SLURM_NTASKS_PER_NODE": "many"}, 8)


def test_the_first_nodes_are_taken():
    nodes = [Node("a", 2), Node("b", 2)]
    assert first_nodes(nodes, 0, "hosts") == nodes
    assert first_nodes(nodes, 1, "hosts") == nodes[:1]
    with pytest.raises(ConfigError, match="NODES=3, but hosts has 2"):
        first_nodes(nodes, 3, "hosts")
