#!/bin/sh
# tensorboard 2.21.0, EventFileWriter (also torch.utils.tensorboard's SummaryWriter): after one write that the disk refuses,
# nothing is ever written again, even once there is room.
#
# Expected: events that come after there is room again are in the file, as with Python's own files. Seen: the writer's
# thread ends with the first OSError (and prints its stack trace), and from then on every add_event() and flush() raises
# that OSError in the caller, such as a training loop.
# Source: tensorboard/summary/writer/event_file_writer.py (_AsyncWriterThread.run, _AsyncWriter._check_worker_status).
#
# A limit of the size of files (RLIMIT_FSIZE) takes the place of a full disk, and is taken back. Installs into a temporary
# folder; needs no GPU and no torch. Exit code 0: as stated above.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check tensorboard==2.21.0 protobuf==7.36.2 setuptools==80.9.0
cat > "$folder/show.py" <<'PYTHON'
import os
import resource
import sys
import time

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.event_file_writer import EventFileWriter

folder = sys.argv[1]
writer = EventFileWriter(folder, flush_secs=0)


def add(step):
    try:
        writer.add_event(Event(step=step))
        writer.flush()
        return "ok"
    except OSError as error:
        return type(error).__name__ + ": " + os.strerror(error.errno)


def settled():
    time.sleep(0.5)
    return add(3)


before = resource.getrlimit(resource.RLIMIT_FSIZE)
print("with room:", add(1))
(file,) = (os.path.join(folder, name) for name in os.listdir(folder))
resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(file), before[1]))
add(2)
resource.setrlimit(resource.RLIMIT_FSIZE, before)
print("with room again:", settled())
print("in a file of our own:", open(os.path.join(folder, "other"), "w").write("text"), "characters written")
print("steps in the events:", [event.step for event in EventFileLoader(file).Load() if event.step])
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder/events" 2>"$folder/stderr" | tee "$folder/seen" || { cat "$folder/stderr"; exit 1; }
grep -q "Exception in thread" "$folder/stderr"
cat > "$folder/expected" <<'TEXT'
with room: ok
with room again: OSError: File too large
in a file of our own: 4 characters written
steps in the events: [1]
TEXT
diff "$folder/expected" "$folder/seen" && echo "tensorboard 2.21.0: as stated"
