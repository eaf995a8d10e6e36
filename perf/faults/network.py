"""Faults of the network between hosts (perf.virtual_cluster, needs root): a run of three hosts, one process on each."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator

from config.recipe import ROOT
from perf.faults.fault import ENDED, SAME, Fault, Inject
from perf.faults.machine import ENVIRONMENT, Launched
from perf.faults.place import Ended, Place, losses
from perf.faults.programs import Program
from perf.virtual_cluster.hosts import Hosts
from perf.virtual_cluster.namespaces import FILES, ip

KIND = "the network between three hosts"
SETTINGS = ("run.batch_size=12", "swav.queue.length=0")  # 8 images do not split over three processes


class OnHosts(Launched):
    """`launch.start` on the first of some hosts, with one process on each."""

    def __init__(self, hosts: Hosts, place: Place, *settings: str) -> None:
        self.hosts = hosts
        (place.folder / "hosts").write_text("".join(f"{name} slots=1\n" for name in hosts.names))
        super().__init__(place, *SETTINGS, *settings, options=["--hostfile", str(place.folder / "hosts")])

    def start(self, command: list[str], first: str) -> subprocess.Popen[bytes]:
        with self.log.open("a") as output:
            return self.hosts.run(
                0, command, cwd=ROOT, env=os.environ | ENVIRONMENT, stdout=output, stderr=output,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip


def network_run(place: Place) -> list[str]:
    return place.train(*SETTINGS)


THREE = Program("train.py on 3 hosts", network_run, lambda place: losses(place.run))


@contextlib.contextmanager
def three(place: Place, *settings: str, delay: float = 0.0, loss: float = 0.0) -> Iterator[OnHosts]:
    """A run on three hosts, after its third step."""
    with Hosts(3, place.folder.parent / "hosts", delay=delay, loss=loss) as hosts:
        run = OnHosts(hosts, place, *settings)
        try:
            run.steps(3)
            yield run
        finally:
            run.finish(1)


def on_network(act: Callable[[OnHosts], None], *settings: str) -> Inject:
    """An injection: `act` breaks the network after the third step."""

    def inject(place: Place, program: Program) -> Ended:
        with three(place, *settings) as run:
            act(run)
            return run.finish()

    return inject


def slow_network(delay: float, loss: float) -> Inject:
    def inject(place: Place, program: Program) -> Ended:
        with three(place, delay=delay, loss=loss) as run:
            return run.finish()

    return inject


def cut(run: OnHosts) -> None:
    run.hosts.cut(2)


def cut_for(seconds: float) -> Callable[[OnHosts], None]:
    def act(run: OnHosts) -> None:
        run.hosts.cut(2)
        time.sleep(seconds)
        run.hosts.join(2)

    return act


def one_way(run: OnHosts) -> None:
    """What the third host sends to the first is dropped; what it receives still arrives."""
    ip("-n", run.hosts._spaces[2], "route", "add", "blackhole", f"{run.hosts.addresses[0]}/32")


def killed_host(run: OnHosts) -> None:
    run.hosts.kill(2)


def comes_back(run: OnHosts) -> None:
    """A power cut of the third host, which is up again before the run starts again (launch.restarts)."""
    run.hosts.kill(2)
    run.hosts.boot(2)


def unknown_name(place: Place, program: Program) -> Ended:
    """The third host's name no longer resolves when the run is started."""
    with Hosts(3, place.folder.parent / "hosts") as hosts:
        config = hosts.ssh_config
        config.write_text(config.read_text().replace(f"HostName {hosts.addresses[2]}", "HostName host3.invalid"))
        for space in hosts._spaces:
            file = FILES / space / "hosts"
            file.write_text("".join(line for line in file.open() if "host3" not in line))
        return OnHosts(hosts, place).finish()


def faults() -> list[Fault]:
    lost, restarts = "swave: host3: (no answer|the connection)", ("launch.restarts=2", "launch.backoff=1")

    def row(what: str, inject: Inject, code: int | tuple[int, ...], says: str, then: str = SAME) -> Fault:
        return Fault(KIND, what, inject, code, says, then, 3, program=THREE, needs="hosts")

    return [
        row("the link of the third host is cut", on_network(cut), 1, lost),
        row("it is cut for 3 seconds", on_network(cut_for(3)), 0, "k-NN accuracy", ENDED),
        row("it drops what it sends to the first, one way", on_network(one_way), 1, "swave: .*host"),
        row("a delay of 20 ms each way", slow_network(0.02, 0.0), 0, "k-NN accuracy", ENDED),
        row("2 % of the packets are lost", slow_network(0.001, 0.02), 0, "k-NN accuracy", ENDED),
        row("a power cut of the third host", on_network(killed_host), 1, lost),
        row("a power cut of a host that comes back, launch.restarts=2", on_network(comes_back, *restarts), 0,
            "starting again in", ENDED),
        row("the name of the third host does not resolve", unknown_name, 2, "swave: .*host3.*no proper answer"),
    ]  # fmt: skip
