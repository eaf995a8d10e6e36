"""Opens any backbone by one word: a run, a published file, an export, a library's network, or random weights.

    runs/demo                       a run's latest checkpoint; or one of its checkpoints/step-...
    runs/demo@teacher               the same checkpoint's teacher, the moving average of the network
    swav_800ep_pretrain.pth.tar     a file of weights in any library's layout (docs/export.md); alone only for ResNets
    export/  or  model.safetensors  written by `make export FORMAT=safetensors`; describes its own network
    FILE@NETWORK                    weights for a network of that name
    RUN@module:function             a run whose backbone is the user's own code, which no file can start by itself;
                                    also EXPORT@module:function, and @transformers:FOLDER if the folder has moved
    torchvision:NAME, timm:NAME     the library's network and weights
    random@NETWORK                  random weights; `random` alone: for the first backbone's network

NETWORK is timm:NAME, torchvision:NAME, transformers:NAME, module:function, one of our ResNets (resnet50w2) or a recipe
(config/demo.yaml). Weights that do not fit their network are an error that names the keys. Nothing is unpickled.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from evaluation.architectures import (
    Inputs,
    NamedNetwork,
    build,
    from_config,
    of_weights,
)
from model.backbone import backbone_of
from model.libraries.names import is_own_code, split_own_code
from model.sizes.trial import channels_of
from model.swav import SwAV
from model.weights import check_finite, find, read_weights, take_weights
from training.build import sizes_of
from training.trained_network import TEACHER, named_by_user, read_trained

RANDOM = "random"
Say = Callable[[str], None]
HEAD_KEYS = {f"projection_head.{layer}.{part}" for layer in (0, 3) for part in ("weight", "bias")}


@dataclass(frozen=True)
class Backbone:
    """word: as given. architecture: the network's name. network: images to features, on the CPU, in eval mode. weights:
    SHA-256 of all its tensors. swav: the network with projection head and prototypes, None without them. data, test:
    the images that a run was trained on and scored with; image, label: its choice of them, channels, layout,
    max_pixels, bands, pages, stretch, range: of their pixels. temperature: of its loss."""

    word: str
    architecture: str
    network: nn.Module
    weights: str
    inputs: Inputs
    swav: SwAV | None = None
    data: str | list[str] | None = None
    test: str | None = None
    image: str | None = None
    label: str | None = None
    channels: str | int = "rgb"
    layout: str = "auto"
    max_pixels: int | None = None
    bands: str | None = None
    pages: str | None = None
    stretch: list[float] | None = None
    range: Any = None
    temperature: float = 0.1

    @property
    def feature_dim(self) -> int:
        return int(self.network.feature_dim)  # type: ignore[arg-type]

    def described(self) -> dict[str, Any]:
        """The backbone's entries in a result file."""
        return {
            "backbone": self.word,
            "architecture": self.architecture,
            "weights": self.weights,
            "feature_dim": self.feature_dim,
        }


def open_backbones(words: list[str], seed: int = 31, say: Say = lambda line: None) -> list[Backbone]:
    """All backbones in order; `random` alone takes the first one's network. say: gets a line about each file that is
    read. Raises ValueError (one line)."""
    backbones: list[Backbone] = []
    for word in words:
        if word == RANDOM:
            if not backbones:
                raise ValueError(f"{RANDOM} alone needs a backbone before it; give {RANDOM}@NETWORK")
            backbones.append(_random_like(backbones[0], seed))
        else:
            backbones.append(open_backbone(word, seed, say))
    return backbones


def open_backbone(word: str, seed: int = 31, say: Say = lambda line: None) -> Backbone:
    """The backbone that `word` names; seed: for random weights; say: gets a line about a file. Raises ValueError (one
    line)."""
    if word.startswith(f"{RANDOM}@"):
        torch.manual_seed(seed)
        return _named(word, build(word.partition("@")[2]))
    given, own = (word, "") if Path(word).exists() else split_own_code(word)
    path = Path(given)
    if path.is_dir() and any(path.glob("model.safetensors*")) and not (path / "manifest.json").is_file():
        return replace(_from_file(path, say, own=own), word=word)
    if path.is_dir() or (given.endswith(TEACHER) and Path(given.removesuffix(TEACHER)).is_dir()):
        return _from_run(word, path, own)
    if path.is_file():
        return replace(_from_file(path, say, own=own), word=word)
    if word.startswith(("torchvision:", "timm:")):
        return _named(word, build(word, pretrained=True))
    for at in (place for place, letter in enumerate(word) if letter == "@"):  # folders and recipes may have one too
        if Path(word[:at]).exists():
            return replace(_from_file(Path(word[:at]), say, build(word[at + 1 :])), word=word)
    raise ValueError(
        f"backbone {word}: no such run or file; give a run's directory, a file of weights, FILE@NETWORK, "
        "torchvision:NAME, timm:NAME or random@NETWORK"
    )


def feature_function(
    backbone: Backbone, network: nn.Module, stage: str | None = None, pool: int = 0
) -> Callable[[Tensor], Tensor]:
    """Images [batch, 3, s, s] -> features [batch, dim], float32, by `network` (the backbone's, on any device).

    stage: a part of the network (layer3, blocks.8) whose output is taken; None: the last features. pool: a map is
    averaged over windows of this side in pixels, one pixel apart (6 gives the published 8192 features of a 7 x 7 map);
    0: over the whole map. Tokens [batch, n, dim] are averaged. Raises ValueError for an unknown stage.
    """
    if stage is None and not pool:
        return lambda images: network(images).float().flatten(1)
    stage = stage or ("layer4" if hasattr(network, "layer4") else None)
    try:
        module = network.get_submodule(stage or "")
    except AttributeError:
        names = ", ".join(name for name, _ in network.named_children())
        raise ValueError(f"--stage={stage}: {backbone.architecture} has {names}") from None

    def features(images: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        hook = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        try:
            network(images)
        finally:
            hook.remove()
        return pooled(outputs[-1].float(), pool)

    return features


def pooled(output: Float[Tensor, "batch channels *space"], window: int) -> Float[Tensor, "batch features"]:
    """Maps [batch, channels, height, width] averaged over windows or as a whole, tokens [batch, n, dim] over n.
    Raises ValueError for a window larger than the map."""
    if output.ndim == 4:
        if window > min(output.shape[2:]):
            raise ValueError(f"--pool={window}: the map has {output.shape[2]} x {output.shape[3]} pixels")
        return (functional.avg_pool2d(output, window, stride=1) if window else output.mean((2, 3))).flatten(1)
    return output.mean(1) if output.ndim == 3 else output.flatten(1)


def weights_digest(network: nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of all tensors."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------- kinds
@torch.no_grad()
def _architecture(name: str, network: nn.Module, inputs: Inputs, words: str = "") -> str:
    """The name of a network. For the user's own code, which may change and keep its tensors, with a digest of the
    features of noise, so that the cache of features tells the two apart."""
    if not is_own_code(name):
        return name + words
    shape, generator = (2, channels_of(network), inputs.size, inputs.size), torch.Generator().manual_seed(0)
    features = network.eval()(torch.randn(shape, generator=generator))
    digits = " ".join(f"{value:.3g}" for value in features.flatten().tolist())
    return f"{name}{words}, features {hashlib.sha256(digits.encode()).hexdigest()[:12]}"


def _named(word: str, named: NamedNetwork) -> Backbone:
    network = named.network.eval()
    check_finite(network.state_dict(), f"backbone {word}")
    return Backbone(
        word, _architecture(named.name, network, named.inputs), network, weights_digest(network), named.inputs
    )


def _random_like(first: Backbone, seed: int) -> Backbone:
    """The first backbone's network with new random weights, from each layer's own initialization."""
    network = copy.deepcopy(first.network)
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # as model/resnet.py does
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    return replace(first, word=RANDOM, network=network, weights=weights_digest(network), swav=None)


def _from_run(word: str, path: Path, own: str) -> Backbone:
    trained = read_trained(path, own)
    config, network = trained.config, trained.network
    options = f" {trained.options}" if trained.options else ""
    return Backbone(
        word,
        _architecture(trained.backbone_name, network.backbone, from_config(config), options),
        network.backbone,
        weights_digest(network.backbone),
        from_config(config),
        swav=network,
        data=config["data"]["path"],
        test=config["data"]["test"],
        image=config["data"].get("image"),
        label=config["data"].get("label"),
        channels=config["data"].get("channels", "rgb"),  # checkpoints from before there were channels do not name them
        layout=config["data"].get("layout", "auto"),
        max_pixels=config["data"].get("max_pixels"),
        bands=config["data"].get("bands"),
        pages=config["data"].get("pages"),
        stretch=config["data"].get("stretch"),
        range=config["data"].get("range"),
        temperature=config["swav"]["temperature"],
    )


def _from_file(path: Path, say: Say, named: NamedNetwork | None = None, own: str = "") -> Backbone:
    """own: what the user names in place of the file's module:function or transformers:FOLDER; alone, as a network."""
    weights = read_weights(path)
    header = _header(path / "model.safetensors" if path.is_dir() else path)
    note = ""
    config = json.loads(header["config"]) if named is None and "config" in header else None
    if named is None and "backbone" in header:
        options = json.loads(header.get("options", "{}"))
        inputs, sizes = (from_config(config), sizes_of(config)) if config else (Inputs(), [])
        name = named_by_user(header["backbone"], own, str(path))
        network = backbone_of({"backbone": name, "options": options}, sizes, own_code=bool(own))
        named = NamedNetwork(network, name, inputs)
    if named is None and own:
        named = build(own)
    if named is None:
        named = of_weights(find(weights).backbone, path)
        note = f"; read as {named.name}, by its shapes (FILE@timm:NAME names another network with the same tensors)"
    network = named.network
    found = find(weights, network.state_dict())
    swav = _with_heads(network, found.heads, found.head_count)
    whole = network if swav is None else swav
    take_weights(whole, weights, f"weights {path}", say=lambda line: say(line + note))
    if swav is not None:
        swav.eval().prototypes.normalize()  # published files hold prototypes one update after normalization
    network.eval()
    digest, data = weights_digest(network), (config or {}).get("data", {})
    pixels = {"channels": data.get("channels", "rgb"), "layout": data.get("layout", "auto")}
    pixels |= {"max_pixels": data.get("max_pixels"), "bands": data.get("bands"), "pages": data.get("pages")}
    pixels |= {"stretch": data.get("stretch"), "range": data.get("range")}
    name = _architecture(named.name, network, named.inputs)
    return Backbone(str(path), name, network, digest, named.inputs, swav=swav, **pixels)


def _with_heads(network: nn.Module, weights: Mapping[str, Tensor], heads: int) -> SwAV | None:
    """A SwAV network around the backbone, if the weights have a projection head of two layers and prototypes. heads:
    how many heads of prototypes."""
    if not {*HEAD_KEYS, "prototypes.weight"} <= set(weights):
        return None
    prototypes, embedding_dim = weights["prototypes.weight"].shape
    hidden_dim = weights["projection_head.0.weight"].shape[0]
    return SwAV(network, hidden_dim, embedding_dim, prototypes // heads, heads)


def _header(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, {} for other files."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}
