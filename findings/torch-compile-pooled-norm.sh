#!/bin/sh
# torch 2.11.0, torch.compile on a CPU: no gradient comes through a mean over pixels between two layer norms.
#
# Expected: the gradient of eager mode. Seen: layer norm over channels, convolution, adaptive mean and layer norm,
# as EdgeNeXt of timm has them, give the right features, but with the backend "inductor" the gradient
# before the mean is exactly 0, without a message. It is right with "aot_eager", and without either of the two norms.
# Source: none found; pytorch issues 179931 and 193061 have other values that inductor loses without a word.
#
# Installs into a temporary folder (some 5 GB with torch's CUDA libraries); needs g++ and no GPU. Exit code 0: as stated.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.11.0 numpy==2.3.5 setuptools==80.9.0
cat > "$folder/show.py" <<'PYTHON'
import torch
from torch import nn


class Channels(nn.LayerNorm):
    """Layer norm over the channels of a map [images, channels, height, width]."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Network(nn.Module):
    def __init__(self, first, last):
        super().__init__()
        self.first, self.convolution, self.last = first, nn.Conv2d(16, 32, 2, 2), last

    def forward(self, x):
        maps = self.convolution(self.first(x))
        return self.last(nn.functional.adaptive_avg_pool2d(maps, 1).flatten(1))


cases = {
    "both norms": (Channels(16), nn.LayerNorm(32)),
    "without the first norm": (nn.Identity(), nn.LayerNorm(32)),
    "without the last norm": (Channels(16), nn.Identity()),
}
torch.manual_seed(0)
for words, norms in cases.items():
    network, images, weights = Network(*norms), torch.randn(4, 16, 14, 14, requires_grad=True), torch.randn(4, 32)
    results = {}
    for backend in ("eager", "aot_eager", "inductor"):
        torch._dynamo.reset()
        network.zero_grad()
        features = torch.compile(network, backend=backend, dynamic=False)(images)
        (features * weights).mean().backward()
        results[backend] = features.detach(), network.convolution.weight.grad.clone()
    for backend in ("aot_eager", "inductor"):
        same = [torch.allclose(*pair, rtol=1e-3, atol=1e-6) for pair in zip(results[backend], results["eager"])]
        zeros = "" if results[backend][1].any() else ", which is all zeros"
        print(f"{words}, {backend}: same features {same[0]}, same gradient {same[1]}{zeros}")
PYTHON
"$folder/venv/bin/python" "$folder/show.py" 2> "$folder/errors" > "$folder/seen" || { cat "$folder/errors" >&2; exit 1; }
cat "$folder/seen"
cat > "$folder/expected" <<'TEXT'
both norms, aot_eager: same features True, same gradient True
both norms, inductor: same features True, same gradient False, which is all zeros
without the first norm, aot_eager: same features True, same gradient True
without the first norm, inductor: same features True, same gradient True
without the last norm, aot_eager: same features True, same gradient True
without the last norm, inductor: same features True, same gradient True
TEXT
diff "$folder/expected" "$folder/seen" && echo "torch 2.11.0: as stated"
