#!/bin/sh
# wandb 0.31.0: an offline run that is killed lacks what it logged in its last 15 seconds or so.
#
# Expected: what log() was given some seconds ago is in the run's file, as the file exists to outlive the run. Seen: 20 steps
# logged within a second, all processes killed 10 seconds later (a scheduler's limit, no memory): the file has 7 bytes, its
# header alone. Killed 25 seconds later it has all 20 steps. wandb-core writes when it has 32 KiB, or about every 15
# seconds. So `wandb sync` of a killed run shows it shorter than it was, and a run killed at once does not show at all.
# Source: observed on the file run-*.wandb (records of protobuf in LevelDB's log format).
#
# Installs into a temporary folder; needs no account and no network but for the installation. Exit code 0: as stated above.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check wandb==0.31.0
cat > "$folder/log.py" <<'PYTHON'
import os
import signal
import sys
import time

import wandb

run = wandb.init(project="p", dir=sys.argv[1], mode="offline")
for step in range(20):
    run.log({"step": step})
time.sleep(float(sys.argv[2]))
os.killpg(0, signal.SIGKILL)
PYTHON
cat > "$folder/read.py" <<'PYTHON'
import struct
import sys
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

file = next(Path(sys.argv[1]).rglob("*.wandb"))
data, at, steps = file.read_bytes(), 7, 0
while at + 7 <= len(data):  # all within the first block of 32 KiB, where no record is cut
    _, length, _ = struct.unpack_from("<IHB", data, at)
    record = Record()
    record.ParseFromString(data[at + 7 : at + 7 + length])
    steps += record.WhichOneof("record_type") == "history"
    at += 7 + length
print(f"killed after {sys.argv[2]} seconds: {steps} of 20 steps in the file")
PYTHON
for seconds in 10 25; do
    mkdir "$folder/$seconds"
    WANDB_SILENT=true setsid -w "$folder/venv/bin/python" "$folder/log.py" "$folder/$seconds" "$seconds" 2>/dev/null || true
    "$folder/venv/bin/python" "$folder/read.py" "$folder/$seconds" "$seconds"
done | tee "$folder/seen"
cat > "$folder/expected" <<'TEXT'
killed after 10 seconds: 0 of 20 steps in the file
killed after 25 seconds: 20 of 20 steps in the file
TEXT
diff "$folder/expected" "$folder/seen" && echo "wandb 0.31.0: as stated"
