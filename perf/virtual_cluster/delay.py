"""The network between virtual hosts, with a delay and with loss of packets.

    python -m perf.virtual_cluster.delay SECONDS LOSS NAMESPACE=ADDRESS...

Makes a TUN device eth0 in each network namespace and forwards IPv4 packets between them, each after SECONDS. Drops a
share LOSS of them, and all other packets (IPv6, broadcasts). Reads the commands `cut ADDRESS`, `join ADDRESS` and
`hello` from stdin and answers each with `done`. Ends when stdin ends. Needs root.
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
BURST = 32  # packets read from one device before other devices and packets that are due

libc = ctypes.CDLL(None, use_errno=True)


def enter(space: str) -> None:
    """Move this process to the network namespace with this path. Raises OSError."""
    file = os.open(space, os.O_RDONLY)
    try:
        if libc.setns(file, NEW_NET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), space)
    finally:
        os.close(file)


def open_tun(space: str) -> int:
    """Enter the namespace with this path and make a device eth0 there; returns its non-blocking descriptor."""
    enter(space)
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, SET_DEVICE, struct.pack("16sH22x", b"eth0", TUN | NO_INFORMATION))
    return tun


def forward(links: dict[bytes, int], delay: float, loss: float) -> None:
    """Forward packets until stdin ends. links: device of each packed address; delay: in seconds; loss: a share."""
    queue: deque[tuple[float, int, int, bytes]] = deque()  # due time, source, target, packet
    cut: set[int] = set()
    while True:
        wait = max(0.0, queue[0][0] - time.monotonic()) if queue else None
        ready = select.select([0, *links.values()], [], [], wait)[0]
        if 0 in ready:
            ready.remove(0)
            command = os.read(0, 4096).decode().split()
            if not command:
                return
            _run_command(command, links, cut)
            queue = deque(entry for entry in queue if not cut.intersection(entry[1:3]))
            print("done", flush=True)
        for tun in ready:
            _receive(tun, links, cut, queue, delay, loss)
        _deliver(queue)


def _run_command(command: list[str], links: dict[bytes, int], cut: set[int]) -> None:
    if command[0] == "hello":
        return
    change = {"cut": cut.add, "join": cut.discard}[command[0]]
    change(links[socket.inet_aton(command[1])])


def _receive(
    tun: int,
    links: dict[bytes, int],
    cut: set[int],
    queue: deque[tuple[float, int, int, bytes]],
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
        queue.append((time.monotonic() + delay, tun, target, packet))


def _deliver(queue: deque[tuple[float, int, int, bytes]]) -> None:
    now = time.monotonic()
    while queue and queue[0][0] <= now:
        _, _, target, packet = queue.popleft()
        try:
            os.write(target, packet)
        except OSError:  # a device that is down accepts no packets
            continue


if __name__ == "__main__":
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    pairs = [word.split("=") for word in sys.argv[3:]]
    devices = {socket.inet_aton(address): open_tun(f"/run/netns/{space}") for space, address in pairs}
    enter(f"/proc/self/fd/{home}")
    libc.prctl(TIMER_SLACK, 1000, 0, 0, 0)  # nanoseconds; usually 50000
    forward(devices, float(sys.argv[1]), float(sys.argv[2]))
