"""The wire between hosts that are far apart or lose packets.

    python -m perf.virtual_cluster.delay SECONDS LOSS NAMESPACE=ADDRESS...

Makes a TUN device eth0 in each network namespace and carries IPv4 packets between them, each after SECONDS, a share
LOSS of them not at all; others (IPv6, broadcasts) vanish. Reads commands from stdin, `cut ADDRESS`, `join ADDRESS` or
`hello`, and says `done` to each. Ends with its stdin. Needs root.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import select
import socket
import struct
import sys
import time
from collections import deque

NEW_NET, TIMER_SLACK = 0x40000000, 29  # Linux: CLONE_NEWNET, PR_SET_TIMERSLACK
SET_DEVICE, TUN, NO_INFORMATION = 0x400454CA, 0x0001, 0x1000  # TUNSETIFF, IFF_TUN, IFF_NO_PI
BURST = 32  # packets of one device in a row, then the others and those that are due have their turn

libc = ctypes.CDLL(None, use_errno=True)


def enter(space: str) -> None:
    """Move this process to the network namespace of a file. Raises OSError."""
    file = os.open(space, os.O_RDONLY)
    try:
        if libc.setns(file, NEW_NET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), space)
    finally:
        os.close(file)


def open_tun(space: str) -> int:
    """A descriptor, without blocking, of a new device eth0 in the namespace of a file. Leaves this process there."""
    enter(space)
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, SET_DEVICE, struct.pack("16sH22x", b"eth0", TUN | NO_INFORMATION))
    return tun


def forward(links: dict[bytes, int], delay: float, loss: float) -> None:
    """Carry packets between the devices `links`, by packed address, until stdin ends."""
    way: deque[tuple[float, int, int, bytes]] = deque()  # when it is due, from, to, packet
    cut: set[int] = set()
    while True:
        wait = max(0.0, way[0][0] - time.monotonic()) if way else None
        ready = select.select([0, *links.values()], [], [], wait)[0]
        if 0 in ready:
            ready.remove(0)
            command = os.read(0, 4096).decode().split()
            if not command:
                return
            _obey(command, links, cut)
            way = deque(entry for entry in way if not cut.intersection(entry[1:3]))
            print("done", flush=True)
        for tun in ready:
            _take(tun, links, cut, way, delay, loss)
        _deliver(way)


def _obey(command: list[str], links: dict[bytes, int], cut: set[int]) -> None:
    if command[0] == "hello":
        return
    change = {"cut": cut.add, "join": cut.discard}[command[0]]
    change(links[socket.inet_aton(command[1])])


def _take(
    tun: int,
    links: dict[bytes, int],
    cut: set[int],
    way: deque[tuple[float, int, int, bytes]],
    delay: float,
    loss: float,
) -> None:
    for _ in range(BURST):
        try:
            packet = os.read(tun, 65536)
        except BlockingIOError:
            return
        target = links.get(packet[16:20]) if packet[0] >> 4 == 4 else None
        if target is None or tun in cut or target in cut or (loss and random.random() < loss):
            continue
        way.append((time.monotonic() + delay, tun, target, packet))


def _deliver(way: deque[tuple[float, int, int, bytes]]) -> None:
    now = time.monotonic()
    while way and way[0][0] <= now:
        _, _, target, packet = way.popleft()
        try:
            os.write(target, packet)
        except OSError:  # a device that is not up takes none
            continue


if __name__ == "__main__":
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    pairs = [word.split("=") for word in sys.argv[3:]]
    devices = {socket.inet_aton(address): open_tun(f"/run/netns/{space}") for space, address in pairs}
    enter(f"/proc/self/fd/{home}")
    libc.prctl(TIMER_SLACK, 1000, 0, 0, 0)  # nanoseconds; usually 50000
    forward(devices, float(sys.argv[1]), float(sys.argv[2]))
