#!/bin/sh
# torch 2.11.0, torch.compile: an autograd.Function whose forward ends in a cast that changes nothing has gradients of 0.
#
# Expected: the gradient of eager mode. Seen: zeros, without a message, already with the backends "eager" and
# "aot_eager": x.to(x.dtype) is the same tensor as the value before it, and the compiled function returns both, so that
# the gradient goes to the wrong one. Casting only where the dtype differs gives the right gradient.
# Source: torch/_functorch/autograd_function.py (AutogradFunctionApply returns all values of forward as outputs);
# pytorch issue 180642 has the same for an operation in place.
#
# Installs into a temporary folder (some 5 GB with torch's CUDA libraries); needs no GPU. Exit code 0: as stated above.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.11.0 numpy==2.3.5 setuptools==80.9.0
cat > "$folder/show.py" <<'PYTHON'
import torch


class Always(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (x * 2).to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        return dy * 2


class WhereItChanges(Always):
    @staticmethod
    def forward(ctx, x):
        out = x * 2
        return out if out.dtype == x.dtype else out.to(x.dtype)


for function in (Always, WhereItChanges):
    for backend in (None, "eager", "aot_eager"):
        x = torch.ones(2, requires_grad=True)
        call = function.apply
        double = call if backend is None else torch.compile(lambda x, call=call: call(x), backend=backend)
        double(x).sum().backward()
        print(f"{function.__name__}, {backend or 'not compiled'}: {x.grad.tolist()}")
PYTHON
"$folder/venv/bin/python" "$folder/show.py" | tee "$folder/seen"
cat > "$folder/expected" <<'TEXT'
Always, not compiled: [2.0, 2.0]
Always, eager: [0.0, 0.0]
Always, aot_eager: [0.0, 0.0]
WhereItChanges, not compiled: [2.0, 2.0]
WhereItChanges, eager: [2.0, 2.0]
WhereItChanges, aot_eager: [2.0, 2.0]
TEXT
diff "$folder/expected" "$folder/seen" && echo "torch 2.11.0: as stated"
