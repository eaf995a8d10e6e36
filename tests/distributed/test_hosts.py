"""Hosts in namespaces resolve names, answer, fall silent, lose power, see their own files and leave nothing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from perf.virtual_cluster.hosts import Hosts
from perf.virtual_cluster.throughput import on_host, pings

# Connects and prints that; then sends each line of its input and prints the answer, or the error without one.
TALK = """import socket, sys
with socket.create_connection((sys.argv[1], 7000), timeout=60) as connection:
    connection.settimeout(float(sys.argv[2]))
    print("connected", flush=True)
    for line in sys.stdin:
        try:
            connection.sendall(line.encode())
            print(repr(connection.recv(100).decode()), flush=True)
        except OSError as error:
            print(type(error).__name__, flush=True)
"""
ECHO = """import socket
with socket.create_server(("", 7000)) as server:
    print("ready", flush=True)
    connection = server.accept()[0]
    while data := connection.recv(100):
        connection.sendall(data)
"""
COUNT = """import socket
with socket.socket(type=socket.SOCK_DGRAM) as plain:
    plain.bind(("", 7001))
    print("ready", flush=True)
    got = set()
    while (data := plain.recv(100)) != b"end":
        got.add(data)
    print(len(got))
"""
SEND = """import socket, sys
with socket.socket(type=socket.SOCK_DGRAM) as plain:
    for number in range(400):
        plain.sendto(b"%d" % number, (sys.argv[1], 7001))
    for _ in range(40):
        plain.sendto(b"end", (sys.argv[1], 7001))
"""


def start(hosts, index, *command):
    return hosts.run(index, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def script(hosts, index, text, *arguments):
    return start(hosts, index, sys.executable, "-c", text, *arguments)


def output(hosts, index, *command):
    return start(hosts, index, *command).communicate(timeout=120)[0]


def conversation(hosts, other, timeout):
    """Connect the first host to another; returns say(line), which gives the answer, or the error after `timeout` s."""
    assert script(hosts, other, ECHO).stdout.readline() == "ready\n"
    talk = script(hosts, 0, TALK, hosts.names[other], str(timeout))
    assert talk.stdout.readline() == "connected\n"

    def say(line):
        print(line, file=talk.stdin, flush=True)
        return talk.stdout.readline().strip()

    return say


def remains():
    """Paths of the namespaces and folders of this process."""
    folders = [path for path in (Path("/run/netns"), Path("/etc/netns")) if path.is_dir()]
    return [path for folder in folders for path in folder.iterdir() if path.name.startswith(f"swave-{os.getpid()}-")]


def test_names_resolve_and_ssh_reaches_every_host(make_hosts):
    with make_hosts(3) as hosts:
        ask = "hostname; cat /proc/sys/kernel/hostname; echo ~; echo $HOME; getent hosts $(hostname)"
        for name, address, home in zip(hosts.names, hosts.addresses, hosts.homes, strict=True):
            for ssh in (["ssh", "-F", str(hosts.ssh_config)], ["ssh"]):
                words = output(hosts, 0, *ssh, name, ask).split()
                assert words == [name, name, str(home), str(home), address, name]
        assert output(hosts, 1, "sh", "-c", "hostname; echo $HOME").split() == ["host2", str(hosts.homes[1])]
        assert output(hosts, 1, "pwd").strip() == os.getcwd()
    assert not remains()


@pytest.mark.slow(seconds=8)
@pytest.mark.parametrize("delay", [0.0, 0.002])
def test_a_cut_link_is_silent_and_a_join_restores_it(make_hosts, delay):
    with make_hosts(3, delay=delay) as hosts:
        say = conversation(hosts, 1, 2.0)
        assert say("one") == "'one\\n'"
        hosts.cut(1)
        assert say("two") == "TimeoutError"
        ways = [(0, "host2"), (1, "host1"), (0, "host3")]
        at_once = [on_host(hosts, index, "ping", name, "1") for index, name in ways]
        assert [len(json.loads(ping.communicate(timeout=120)[0])) for ping in at_once] == [0, 0, 1]
        hosts.join(1)
        assert len(pings(hosts, 0, "host2", 3)) == 3
        answers = [say("three")]
        while "two" not in answers[-1] and len(answers) < 10:
            answers.append(say("three"))
        assert "two" in answers[-1] and set(answers[:-1]) <= {"TimeoutError"}, answers


@pytest.mark.slow(seconds=8)
@pytest.mark.parametrize("delay", [0.0, 0.002])
def test_a_kill_leaves_no_process_and_says_nothing_to_the_others(make_hosts, delay):
    with make_hosts(2, delay=delay) as hosts:
        say = conversation(hosts, 1, 2.0)
        session = start(hosts, 0, "ssh", "host2", "echo in; sleep 100")
        assert session.stdout.readline() == "in\n"
        before = hosts.processes(1)
        assert len(before) >= 4  # the namespaces' process, sshd, its session, the echo
        hosts.kill(1)
        deadline = time.monotonic() + 30  # a killed process still counts until the kernel has taken it down
        while [pid for pid in before if runs(pid)] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not hosts.processes(1) and not [pid for pid in before if runs(pid)]
        assert say("one") == "TimeoutError" and session.poll() is None
        with pytest.raises(RuntimeError, match="host2 was killed"):
            hosts.run(1, ["true"])
        hosts.boot(1)
        assert output(hosts, 0, "ssh", "host2", "hostname") == "host2\n"
        assert "two" not in say("two")


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_bind_and_shared_memory_are_seen_by_one_host(make_hosts, tmp_path):
    for name in ("shared", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(name)
    with make_hosts(2, binds={1: {tmp_path / "other": tmp_path / "shared"}}) as hosts:
        ask = f"cat {tmp_path}/shared/name"
        assert [output(hosts, index, "sh", "-c", ask) for index in (0, 1)] == ["shared", "other"]
        assert [output(hosts, 0, "ssh", name, ask) for name in hosts.names] == ["shared", "other"]
        assert output(hosts, 1, "cat", "name") != "other"
        inside = hosts.run(1, ["cat", "name"], cwd=tmp_path / "shared", stdout=subprocess.PIPE, text=True)
        assert inside.communicate()[0] == "other"
        output(hosts, 1, "touch", "/dev/shm/mine")
        assert "mine" in output(hosts, 1, "ls", "/dev/shm") and "mine" not in output(hosts, 0, "ls", "/dev/shm")
        assert not Path("/dev/shm/mine").exists()
    assert (tmp_path / "shared" / "name").read_text() == "shared"


def test_delay_and_loss_are_as_given(make_hosts):
    with make_hosts(2, delay=0.005) as hosts:
        trips = pings(hosts, 0, "host2", 20)
        assert len(trips) == 20 and 0.01 <= min(trips) < 0.014, trips
    with make_hosts(2, loss=0.5) as hosts:
        count = script(hosts, 1, COUNT)
        assert count.stdout.readline() == "ready\n"
        script(hosts, 0, SEND, "host2").communicate(timeout=120)
        assert 140 < int(count.communicate(timeout=120)[0]) < 260  # six standard deviations


def test_nothing_is_left_after_an_error_and_two_networks_do_not_mix(make_hosts):
    network = Path("/proc/net/dev").read_text().count(":")
    with pytest.raises(KeyError), make_hosts(2) as one, make_hosts(2, delay=0.001) as two:
        assert not set(one.addresses) & set(two.addresses)
        assert len(pings(one, 0, "host2", 1)) == len(pings(two, 0, "host2", 1)) == 1
        assert not pings(one, 0, two.addresses[1], 0)
        assert Path("/proc/net/dev").read_text().count(":") == network
        sleeper = two.run(1, ["sleep", "100"])
        assert len(remains()) == 12 - 2  # the namespaces of the networks have no folder
        raise KeyError
    assert sleeper.wait(timeout=60) == -9 and not remains()
    with (
        pytest.raises(RuntimeError, match=r"host2 does not start.*nowhere"),
        make_hosts(2, binds={1: {"/": "/nowhere"}}),
    ):
        pass
    assert not remains()


def test_leftovers_of_a_killed_process_are_removed(hosts_possible, make_hosts, tmp_path):
    text = "import time\nfrom perf.virtual_cluster.hosts import Hosts\n"
    text += f"h = Hosts(1, {str(tmp_path / 'killed')!r}, delay=0.001)\n"
    text += "h.__enter__()\nprint('up', h.processes(0)[0], flush=True)\ntime.sleep(100)"
    process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    up, pid = process.stdout.readline().split()
    process.kill()
    process.wait()
    assert up == "up" and runs(int(pid))
    with make_hosts(1):
        assert not runs(int(pid))
        assert not [p for p in Path("/run/netns").iterdir() if p.name.startswith(f"swave-{process.pid}-")]
        assert not [p for p in Path("/etc/netns").iterdir() if p.name.startswith(f"swave-{process.pid}-")]


def test_numbers_out_of_range_are_refused(tmp_path):
    for wrong in ({"count": 0}, {"count": 2, "loss": 2.0}, {"count": 2, "delay": -1.0}, {"count": 2, "binds": {2: {}}}):
        with pytest.raises(ValueError, match="hosts, delay"):
            Hosts(folder=tmp_path, **wrong)
