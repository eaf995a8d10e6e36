"""What a run adds to while it trains: metrics.jsonl and TensorBoard's events. A full disk does not end the run."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.dataset.records.crc32c import masked_crc


class Appended:
    """A file to which bytes are added at once. What the disk refuses waits in memory, and is written once there is
    room; `say` is called with a line the first time, and at the end if some of it is lost."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        """Raises OSError if the file cannot be opened."""
        self.path, self._say = path, say
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._waiting, self._told = b"", False

    def write(self, data: bytes) -> None:
        """Add `data`, after what still waits."""
        self._waiting += data
        try:
            while self._waiting:
                self._waiting = self._waiting[os.write(self._file, self._waiting) :]
        except OSError as error:
            if not self._told:
                self._say(f"{self.path}: {error.strerror}; what belongs there waits in memory until there is room")
            self._told = True

    def close(self) -> None:
        """Write what still waits, and close the file."""
        self.write(b"")
        if self._waiting:
            self._say(f"{self.path}: the last {len(self._waiting)} bytes could not be written")
        os.close(self._file)


class Events:
    """Scalars for TensorBoard in a new file of `folder`. TensorBoard's own writer has a thread, which ends with a stack
    trace when the disk is full, and imports boto3, which takes a third of a CPU second."""

    def __init__(self, folder: Path, first_step: int, say: Callable[[str], None]) -> None:
        """first_step: what earlier files of the folder hold from this step on is not shown. Raises OSError."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = Appended(folder / name, say)
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """A point of a curve for each value."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(Event(step=step, summary=Summary(value=points)))

    def picture(self, step: int, name: str, png: bytes) -> None:
        """A PNG under a name. Its size is in the bytes 16 to 24, as PNG has it."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = struct.unpack(">II", png[16:24])
        image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
        self._add(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, image=image)])))

    def close(self) -> None:
        self._file.close()

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        message = event.SerializeToString()
        length = struct.pack("<Q", len(message))
        self._file.write(b"".join((length, masked_crc(length, True), message, masked_crc(message, True))))
