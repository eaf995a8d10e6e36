#!/bin/sh
# peft 0.21.2 with torchvision 0.26.0: LoRA on "all-linear" layers of a ViT leaves the attention as it was, without a word.
#
# Expected: adapters that peft adds to a layer change what it computes and get gradients, or an error. Seen: those of
# "out_proj", the linear layer of torchvision's attention, are added and counted as trainable but have no gradient, while
# those of the MLP have one. torch's nn.MultiheadAttention hands the weight of out_proj to a function and never calls the
# layer, so a wrapper around the layer does not run. Naming "self_attention", the whole module, works.
# Source: torch/nn/modules/activation.py (MultiheadAttention.forward), peft/tuners/lora/layer.py (Linear.forward).
#
# Installs into a temporary folder (some 5 GB with torch's CUDA libraries); needs no GPU. Exit code 0: as stated above.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check \
    torch==2.11.0 torchvision==0.26.0 peft==0.21.2 numpy==2.3.5 setuptools==80.9.0
cat > "$folder/show.py" <<'PYTHON'
import warnings

import torch
from peft import LoraConfig, get_peft_model
from torchvision.models import VisionTransformer

warnings.simplefilter("ignore")


def show(targets):
    torch.manual_seed(0)
    vit = VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3)
    torch.nn.init.normal_(vit.heads[0].weight)
    network = get_peft_model(vit, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    network(torch.randn(2, 3, 32, 32)).square().sum().backward()
    for part in ("out_proj", "mlp"):
        adapters = [one for name, one in network.named_parameters() if "lora_" in name and part in name]
        trained = sum(one.grad is not None for one in adapters)
        print(f"{targets}: {len(adapters)} adapter weights in {part}, {trained} have a gradient")


show("all-linear")
show(["self_attention", "mlp.0", "mlp.3"])
PYTHON
"$folder/venv/bin/python" "$folder/show.py" | tee "$folder/seen"
cat > "$folder/expected" <<'TEXT'
all-linear: 4 adapter weights in out_proj, 0 have a gradient
all-linear: 8 adapter weights in mlp, 8 have a gradient
['self_attention', 'mlp.0', 'mlp.3']: 4 adapter weights in out_proj, 4 have a gradient
['self_attention', 'mlp.0', 'mlp.3']: 8 adapter weights in mlp, 8 have a gradient
TEXT
diff "$folder/expected" "$folder/seen" && echo "peft 0.21.2 with torchvision 0.26.0: as stated"
