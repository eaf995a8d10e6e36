"""Writes transformers.json: what the real transformers makes of this export, for tests where it is not installed.

    python -m pip install transformers==5.24.0 && python tests/golden/write_transformers.py

Run it with the root of the checkout and `tests` in PYTHONPATH. Of each network in `support.exports.FOR_TRANSFORMERS`,
filled as README.md says: config.json and the shapes in model.safetensors as transformers saved them, and features that
`AutoModel.from_pretrained` of that folder gives for `det("images", (2, 3, size, size), 1)`.
"""

import contextlib
import json
import re
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file

from export.__main__ import export
from support.exports import FOR_TRANSFORMERS, make_run
from support.golden import GOLDEN, det


@torch.no_grad()
def main() -> None:
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        torch.distributed.init_process_group("gloo", init_method=f"file://{temporary}/store", rank=0, world_size=1)
        for index, (name, (backbone, options, size)) in enumerate(FOR_TRANSFORMERS.items()):
            folder = Path(temporary) / f"network{index}"
            run, _ = make_run(Path(temporary) / f"run{index}", backbone, options, size)
            names = {"images": det("images", (2, 3, size, size), 1)}
            code = export(run, folder, "transformers")
            with contextlib.chdir(temporary):
                exec("\n".join(code), names)
            config = json.loads((folder / "config.json").read_text())
            saved = load_file(folder / "model.safetensors")
            results[name] = {
                "config": {key: value for key, value in config.items() if key not in ("transformers_version", "dtype")},
                "tensors": {key: list(value.shape) for key, value in saved.items()},
                "features": [[round(value, 6) for value in row] for row in names["features"].tolist()],
            }
        torch.distributed.destroy_process_group()
    result = {"source": f"transformers {version('transformers')}", "networks": results}
    text = re.sub(r"\[[^][{}]*\]", lambda row: " ".join(row[0].split()), json.dumps(result, indent=1))
    (GOLDEN / "transformers.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
