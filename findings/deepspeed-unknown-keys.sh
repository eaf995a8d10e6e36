#!/bin/sh
# DeepSpeed 0.19.8: a misspelt key ends the start in some sections of its configuration and is ignored in others.
#
# Expected: one rule for all sections. Seen: an unknown key in zero_optimization raises; a misspelt section
# (zero_optimizaton), an unknown key at the top level (gradient_clippping) and unknown keys in flops_profiler and
# torch_autocast change nothing, without a warning. The run then trains at ZeRO stage 0 in place of 2, or without the
# profiler.
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
config = {"train_batch_size": 1, **json.loads(sys.argv[1])}
try:
    engine = deepspeed.initialize(model=network, optimizer=torch.optim.AdamW(network.parameters()), config=config)[0]
    stage, profiler = engine.zero_optimization_stage(), engine.flops_profiler_enabled()
    print(f"{sys.argv[1]}: taken, stage {stage}, profiler {profiler}")
except ValueError as error:
    print(f"{sys.argv[1]}: refused ({type(error).__name__})")
PYTHON
for section in \
    '{"zero_optimization": {"stage": 2}}' '{"zero_optimization": {"stagee": 2}}' '{"zero_optimizaton": {"stage": 2}}' \
    '{"gradient_clippping": 1.0}' '{"flops_profiler": {"enabledd": true}}' '{"torch_autocast": {"enabledd": true}}'; do
    TORCH_EXTENSIONS_DIR="$folder/extensions" MASTER_ADDR=127.0.0.1 MASTER_PORT=29732 RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 DS_ACCELERATOR=cpu DS_LOG_LEVEL=error \
        "$folder/venv/bin/python" "$folder/show.py" "$section" 2>"$folder/stderr" | grep '^{' || { cat "$folder/stderr"; exit 1; }
done | tee "$folder/seen"
cat > "$folder/expected" <<'TEXT'
{"zero_optimization": {"stage": 2}}: taken, stage 2, profiler False
{"zero_optimization": {"stagee": 2}}: refused (ValidationError)
{"zero_optimizaton": {"stage": 2}}: taken, stage 0, profiler False
{"gradient_clippping": 1.0}: taken, stage 0, profiler False
{"flops_profiler": {"enabledd": true}}: taken, stage 0, profiler False
{"torch_autocast": {"enabledd": true}}: taken, stage 0, profiler False
TEXT
diff "$folder/expected" "$folder/seen" && echo "DeepSpeed 0.19.8: as stated"
