#!/bin/sh
# lightly 1.6.0: SwaVPrototypes are linear layers with a bias, which normalize() leaves alone.
#
# Expected: after normalize(), the scores of features of length 1 are cosines (SwAV, section 3.1: dot products of unit
# vectors), from -1 to 1. Seen: a bias is added to them and is trained; with a bias of 5 a score is above 4. Sinkhorn with
# epsilon 0.05 multiplies that by 20. Whoever loads these prototypes elsewhere must keep or drop the bias deliberately: the
# published prototypes have none.
#
# Installs into a temporary folder (some 5 GB with torch's CUDA libraries); needs no GPU. Exit code 0: as stated above.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.11.0 torchvision==0.26.0 lightly==1.6.0
cat > "$folder/show.py" <<'PYTHON'
import torch
from lightly.models.modules import SwaVPrototypes

torch.manual_seed(0)
prototypes = SwaVPrototypes(8, 16)
torch.nn.init.constant_(prototypes.heads[0].bias, 5.0)
prototypes.normalize()
features = torch.nn.functional.normalize(torch.randn(4, 8), dim=1)
lengths = prototypes.heads[0].weight.norm(dim=1)
print("parameters:", [name for name, _ in prototypes.named_parameters()])
print("prototypes have length 1:", torch.allclose(lengths, torch.ones(16)))
print("largest score above 4:", bool(prototypes(features).max() > 4))
PYTHON
"$folder/venv/bin/python" "$folder/show.py" 2>"$folder/stderr" | tee "$folder/seen" || { cat "$folder/stderr"; exit 1; }
cat > "$folder/expected" <<'TEXT'
parameters: ['heads.0.weight', 'heads.0.bias']
prototypes have length 1: True
largest score above 4: True
TEXT
diff "$folder/expected" "$folder/seen" && echo "lightly 1.6.0: as stated"
