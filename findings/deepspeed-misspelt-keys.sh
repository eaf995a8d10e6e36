#!/bin/sh
# DeepSpeed 0.19.8: misspelt keys of the configuration are ignored without a word, except inside some sections.
#
# Expected: an unknown key is an error, or at least a warning. Seen: {"zero_optimizaton": {"stage": 3}} trains at stage 0,
# {"gradient_clippping": 0.1} clips at the default of 1.0, {"flops_profiler": {"enabledd": true}} profiles nothing, and
# initialize() returns; only keys inside "bf16" and "zero_optimization" are refused. A run of days then has other memory and
# other numbers than its file says.
# Source: deepspeed/runtime/config.py (each section is looked up by name; no key is checked).
#
# Installs into a temporary folder (some 5 GB with torch's CUDA libraries); needs no GPU. Exit code 0: as stated above.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.11.0 deepspeed==0.19.8 setuptools==80.9.0
cat > "$folder/show.py" <<'PYTHON'
import json
import logging
import sys

import deepspeed
import torch

deepspeed.utils.logger.setLevel(logging.ERROR)
deepspeed.init_distributed("gloo", verbose=False)
network = torch.nn.Linear(2, 2)
config = {"train_batch_size": 1, "optimizer": {"type": "SGD", "params": {"lr": 0.1}}, **json.loads(sys.argv[1])}
try:
    engine, *_ = deepspeed.initialize(model=network, model_parameters=network.parameters(), config=config)
except Exception as error:
    print(f"{sys.argv[1]}: refused by {type(error).__name__}")
else:
    state = f"stage {engine.zero_optimization_stage()}, clipping {engine.gradient_clipping()}, {network.weight.dtype}"
    print(f"{sys.argv[1]}: {state}")
PYTHON
for config in '{"zero_optimizaton": {"stage": 3}}' '{"gradient_clippping": 0.1}' '{"flops_profiler": {"enabledd": true}}' \
    '{"bf16": {"enabledd": true}}' '{"zero_optimization": {"stagee": 3}}'; do
    MASTER_ADDR=127.0.0.1 MASTER_PORT=29732 RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 DS_ACCELERATOR=cpu DS_LOG_LEVEL=error \
        "$folder/venv/bin/python" "$folder/show.py" "$config" 2>"$folder/stderr" | grep '^{' || { cat "$folder/stderr"; exit 1; }
done | tee "$folder/seen"
cat > "$folder/expected" <<'TEXT'
{"zero_optimizaton": {"stage": 3}}: stage 0, clipping 1.0, torch.float32
{"gradient_clippping": 0.1}: stage 0, clipping 1.0, torch.float32
{"flops_profiler": {"enabledd": true}}: stage 0, clipping 1.0, torch.float32
{"bf16": {"enabledd": true}}: refused by ValidationError
{"zero_optimization": {"stagee": 3}}: refused by ValidationError
TEXT
diff "$folder/expected" "$folder/seen" && echo "DeepSpeed 0.19.8: as stated"
