"""Describes exported weights: README.md for people, strings in the file's header for programs."""

from __future__ import annotations

import json
from typing import Any

from omegaconf import OmegaConf

from common.versions import versions
from config.groups import sizes_of_crops
from config.recipe import paths_of
from model.sizes.trial import channels_of
from pipeline.dataset.accounting import losses
from training.trained_network import Trained


def facts(trained: Trained) -> dict[str, Any]:
    """Facts about a checkpoint and its run, as JSON values. knn is None unless it was measured at this checkpoint."""
    crops, summary = trained.config["crops"], trained.run_file("summary.json")
    of_this_checkpoint = summary.get("steps") == trained.state["step"]
    return {
        "backbone": trained.backbone_name,
        "options": trained.options,
        "channels": channels_of(trained.network.backbone),
        "feature_dim": int(trained.network.backbone.feature_dim),  # type: ignore[arg-type]
        "mean": crops["mean"],
        "std": crops["std"],
        "input_sizes": sizes_of_crops(crops),
        "data": ", ".join(paths_of(trained.config["data"])),
        "images": trained.state["images"],
        "steps": trained.state["step"],
        "epochs": trained.state["loader"]["epoch"],
        "knn": summary.get("knn") if of_this_checkpoint else None,
        "versions": trained.run_file("versions.json") or versions(),
    }


TITLES = {
    "swav": "SwAV",
    "deepclusterv2": "DeepCluster-v2",
    "selav2": "SeLa-v2",
    "distill": "distillation",
}  # by `method`


def header(trained: Trained) -> dict[str, str]:
    """The facts and the configuration as strings, the only type of a header: other values become JSON."""
    values = {"format": "pt", **facts(trained), "config": trained.config}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def _input_words(known: dict[str, Any]) -> str:
    channels = known["channels"]
    if channels == 3:
        return "RGB from 0 to 1"
    return f"{channels} channel{'s' * (channels != 1)}, in which 1 is the largest uint8 or uint16 (float32 as it is)"


def model_card(trained: Trained, code: list[str]) -> str:
    """The model card in Markdown. code: the lines of Python that load the weights."""
    known = facts(trained)
    options = f" with {json.dumps(known['options'])}" if known["options"] else ""
    knn = "not measured at this checkpoint" if known["knn"] is None else f"{known['knn']:.2%}"
    rows = {
        "backbone": f"`{known['backbone']}`{options}, {known['feature_dim']} features",
        "trained on": f"`{known['data']}`, {known['images']:,} images",
        "trained for": f"{known['epochs']} epochs, {known['steps']:,} steps",
        "k-NN accuracy": knn,
        "input": f"{_input_words(known)}, minus the mean, divided by the standard deviation",
        "mean": ", ".join(map(str, known["mean"])),
        "standard deviation": ", ".join(map(str, known["std"])),
        "crop sizes": ", ".join(f"{size} x {size}" for size in known["input_sizes"]),
        "versions": ", ".join(f"{package} {version}" for package, version in known["versions"].items()),
    }
    lost = losses(trained.run_file("summary.json").get("data", {})) if known["knn"] is not None else []
    rows |= {f"files not used, {number}": line for number, line in enumerate(lost, 1)}
    table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    return (
        f"# {known['backbone']}, pre-trained with {TITLES[trained.config.get('method', 'swav')]}\n\n"
        "Trained without labels by swave (Caron et al., NeurIPS 2020). The file holds the backbone's weights only.\n\n"
        f"```python\n{chr(10).join(code)}\n```\n\n"
        f"| | |\n| --- | --- |\n{table}\n\n"
        f"## Recipe\n\n```yaml\n{OmegaConf.to_yaml(OmegaConf.create(trained.config))}```\n"
    )
