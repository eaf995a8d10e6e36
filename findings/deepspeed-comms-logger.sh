#!/bin/sh
# DeepSpeed 0.19.8, comms_logger: the section turns the logger on even with "enabled": false.
#
# Expected: {"comms_logger": {"enabled": false}} is the same as no section. Seen: all collectives are logged, as with
# "enabled": true, and each logged collective calls the accelerator's synchronize(): on a GPU the host waits for the
# device every time. Only leaving the section out turns the logger off.
# Source: deepspeed/comm/config.py (DeepSpeedCommsConfig takes the section's presence for "enabled").
#
# Installs into a temporary folder (some 5 GB with torch's CUDA libraries); needs no GPU. Exit code 0: as stated above.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.11.0 deepspeed==0.19.8 setuptools==80.9.0
cat > "$folder/show.py" <<'PYTHON'
import logging
import sys

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

deepspeed.utils.logger.setLevel(logging.ERROR)
section = {"none": {}, "false": {"comms_logger": {"enabled": False}}, "true": {"comms_logger": {"enabled": True}}}[sys.argv[1]]
deepspeed.init_distributed("gloo", verbose=False)
network = torch.nn.Linear(2, 2)
config = {"train_batch_size": 1, "optimizer": {"type": "SGD", "params": {"lr": 0.1}}, **section}
deepspeed.initialize(model=network, model_parameters=network.parameters(), config=config)

waits = 0


def synchronize(self, *_):
    global waits
    waits += 1


type(get_accelerator()).synchronize = synchronize
for _ in range(3):
    deepspeed.comm.all_reduce(torch.ones(4))
print(f"section {sys.argv[1]}: synchronize() calls in 3 all-reduces: {waits}")
PYTHON
for section in none false true; do
    MASTER_ADDR=127.0.0.1 MASTER_PORT=29731 RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 DS_ACCELERATOR=cpu DS_LOG_LEVEL=error \
        "$folder/venv/bin/python" "$folder/show.py" "$section" 2>"$folder/stderr" | grep '^section' || { cat "$folder/stderr"; exit 1; }
done | tee "$folder/seen"
cat > "$folder/expected" <<'TEXT'
section none: synchronize() calls in 3 all-reduces: 0
section false: synchronize() calls in 3 all-reduces: 3
section true: synchronize() calls in 3 all-reduces: 3
TEXT
diff "$folder/expected" "$folder/seen" && echo "DeepSpeed 0.19.8: as stated"
