"""Networks between the hosts of perf/virtual_cluster/hosts.py: a bridge, or a process that delays and drops packets."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence

from config.recipe import ROOT
from perf.virtual_cluster.namespaces import ip, ip_lines, program

MTU, QUEUE = 9000, 10000  # bytes and packets, for a link with delay or loss


class Bridge:
    """A bridge in the namespace `wire`, and a veth pair to each of `spaces`, where it is eth0. Raises RuntimeError."""

    def __init__(self, wire: str, spaces: Sequence[str], addresses: Sequence[str]) -> None:
        self.wire, self.ports = wire, [f"port{index + 1}" for index in range(len(spaces))]
        ip("-n", wire, "link", "add", "bridge", "type", "bridge", "forward_delay", "0")
        ip("-n", wire, "link", "set", "bridge", "up")
        cards = [f"02:00:00:00:00:{index + 1:02x}" for index in range(len(spaces))]
        neighbors = list(zip(addresses, cards, strict=True))
        for space, port, (address, card) in zip(spaces, self.ports, neighbors, strict=True):
            ends = [port, "type", "veth", "peer", "name", "eth0", "address", card, "netns", space]
            ip("-n", wire, "link", "add", *ends)
            ip("-n", wire, "link", "set", port, "master", "bridge", "up")
            others = [f"neigh add {a} lladdr {c} dev eth0 nud permanent" for a, c in neighbors if a != address]
            ip_lines(space, [f"addr add {address}/24 dev eth0", "link set eth0 up", *others])

    def switch(self, index: int, up: bool) -> None:
        """Connect or disconnect a port. With its device down a host would get errors instead of silence."""
        ip("-n", self.wire, "link", "set", self.ports[index], *(["master", "bridge"] if up else ["nomaster"]))

    def end(self) -> None:
        """Does nothing: the bridge disappears with its namespace."""


class Forwarder:
    """`perf.virtual_cluster.delay` in the namespace `wire`. delay: in seconds. loss: a share. Raises RuntimeError."""

    def __init__(self, wire: str, spaces: Sequence[str], addresses: Sequence[str], delay: float, loss: float) -> None:
        self.addresses = list(addresses)
        links = [f"{space}={address}" for space, address in zip(spaces, addresses, strict=True)]
        self.process = subprocess.Popen(
            [
                program("ip"),
                "netns",
                "exec",
                wire,
                sys.executable,
                "-m",
                "perf.virtual_cluster.delay",
                str(delay),
                str(loss),
                *links,
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            self._ask("hello")
            for space, address in zip(spaces, addresses, strict=True):
                set_up = f"link set eth0 mtu {MTU} txqueuelen {QUEUE} up"
                ip_lines(space, [f"addr add {address}/24 dev eth0", set_up])
        except BaseException:
            self.end()
            raise

    def switch(self, index: int, up: bool) -> None:
        self._ask(f"{'join' if up else 'cut'} {self.addresses[index]}")

    def end(self) -> None:
        self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()

    def _ask(self, command: str) -> None:
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            print(command, file=self.process.stdin, flush=True)
        if self.process.stdout.readline() != "done\n":
            raise RuntimeError(f"perf.virtual_cluster.delay ended at {command!r}: exit code {self.process.wait()}")
