"""Measures round trips and throughput between two hosts of perf.virtual_cluster.hosts.

    python -m perf.virtual_cluster.throughput

Prints a table for several delays and losses. The same program runs on the hosts: `ping NAME COUNT` prints the round
trips in seconds as JSON; `receive` prints the bytes per second of one connection, over which `send NAME SECONDS` sends.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

from config.recipe import ROOT
from perf.virtual_cluster.hosts import Hosts

PORT, CHUNK = 5201, 1 << 18


def ping(name: str, count: int, timeout: float = 0.5, pause: float = 0.02) -> list[float]:
    """Seconds of each ICMP echo that returns within `timeout` seconds; a pause in seconds follows each. Needs root."""
    trips, identifier = [], os.getpid() & 0xFFFF
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.settimeout(timeout)
        for number in range(count):
            start = time.perf_counter()
            raw.sendto(_echo(identifier, number), (name, 0))
            while time.perf_counter() - start < timeout:
                try:
                    reply = raw.recv(2048)
                except TimeoutError:
                    break
                if reply[20] == 0 and struct.unpack("!HH", reply[24:28]) == (identifier, number):
                    trips.append(time.perf_counter() - start)
                    break
            time.sleep(pause)
    return trips


def _echo(identifier: int, number: int) -> bytes:
    total = 0x0800 + identifier + number  # the words of an empty echo request, in ones' complement
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBHHH", 8, 0, ~total & 0xFFFF, identifier, number)


def receive() -> float:
    """Bytes per second of one connection, from its first byte to its end."""
    buffer, size = bytearray(CHUNK), 0
    with socket.create_server(("", PORT)) as server:
        print("ready", flush=True)
        with server.accept()[0] as connection:
            start = time.perf_counter()
            while count := connection.recv_into(buffer):
                size += count
            return size / (time.perf_counter() - start)


def send(name: str, seconds: float) -> None:
    """Send zeros for `seconds`."""
    deadline, zeros = time.perf_counter() + seconds, bytes(CHUNK)
    with socket.create_connection((name, PORT)) as connection:
        while time.perf_counter() < deadline:
            connection.sendall(zeros)


def on_host(hosts: Hosts, index: int, *words: str) -> subprocess.Popen[str]:
    """Start this program on a host, with its stdout as a pipe."""
    return hosts.run(
        index,
        [sys.executable, "-m", "perf.virtual_cluster.throughput", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def pings(hosts: Hosts, index: int, name: str, count: int) -> list[float]:
    """`ping` from the host `index` to the host `name`: seconds of each echo. Raises ValueError if it fails."""
    return list(json.loads(on_host(hosts, index, "ping", name, str(count)).communicate()[0]))


def throughput(hosts: Hosts, seconds: float) -> float:
    """Bytes per second from the second host to the first, over `seconds`."""
    receiver = on_host(hosts, 0, "receive")
    assert receiver.stdout
    receiver.stdout.readline()
    on_host(hosts, 1, "send", hosts.names[0], str(seconds)).communicate()
    return float(receiver.communicate()[0])


def measure(delay: float, loss: float) -> str:
    """A row of the table: delay in ms, loss, echoes of 200, round trip in ms (median, 95 %), MB/s over 4 s."""
    with tempfile.TemporaryDirectory() as folder, Hosts(2, folder, delay=delay, loss=loss) as hosts:
        trips = [1000 * trip for trip in pings(hosts, 0, "host2", 200)]
        median, percentile_95 = statistics.median(trips), statistics.quantiles(trips, n=20)[-1]
        speed = throughput(hosts, 4) / 1e6
        return f"| {1000 * delay:g} | {loss:g} | {len(trips)} | {median:.2f} | {percentile_95:.2f} | {speed:.0f} |"


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["ping", name, count]:
            print(json.dumps(ping(name, int(count))))
        case ["receive"]:
            print(receive())
        case ["send", name, seconds]:
            send(name, float(seconds))
        case _:
            print("| delay, ms | loss | of 200 pings | round trip, ms | 95 % | MB/s |\n|---|---|---|---|---|---|")
            for delay, loss in ((0.0, 0.0), (0.0, 1e-9), (0.001, 0.0), (0.005, 0.0), (0.001, 0.01)):
                print(measure(delay, loss), flush=True)
