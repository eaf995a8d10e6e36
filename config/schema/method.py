"""Settings of the network, of SwAV and the methods like it, and of the optimizer."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Len, MinLen

from config.schema.groups import Pixels, ShareOfArea
from config.schema.ranges import AtLeastOne, Auto, FilePath, Free, NotNegative, Range, ZeroOrMore
from config.schema.setting import Section, setting

Momentum = Annotated[float, Range(ge=0, lt=1)]
LARGEST = 1e30  # of factors: a float32 holds their products with parameters and gradients of usual sizes
Factor = Annotated[float, Range(gt=0), Range(le=LARGEST)]
FactorOrZero = Annotated[float, Range(ge=0), Range(le=LARGEST)]


class Lora(Section):
    """Low-rank adapters in the backbone's linear layers, in place of its weights; needs peft."""

    rank: ZeroOrMore = setting(0, "of the adapters, e.g. 8; 0: none, all of the backbone learns")
    alpha: Annotated[float, Range(gt=0), Range(le=LARGEST)] = setting(16.0, "alpha / rank scales the adapters")


class Model(Section):
    """The network: backbone, projection head, prototypes."""

    backbone: str = setting(
        "resnet50",
        "resnet18/34/50/50w2/50w4/50w5, resnet (with options), a model of timm, torchvision:NAME, "
        "transformers:NAME_OR_FOLDER, or your own module:function",
    )
    options: Free = setting({}, "passed to the backbone, e.g. {block: basic, layers: [1, 1, 1], base_width: 16}")
    hidden_dim: ZeroOrMore = setting(2048, "width of the projection head's hidden layer; 0: a linear head")
    embedding_dim: AtLeastOne = setting(128, "length of an embedding")
    prototypes: Auto | Annotated[int, Range(ge=2)] = setting("auto", "prototypes of each head")
    heads: Auto | AtLeastOne = setting(
        "auto", "sets of prototypes; auto: 1 for swav, the teacher's for distill, else 3"
    )
    weights: FilePath | None = setting(
        None,
        "start from these weights, of any library (.safetensors, .pth, a folder); null: at random",
        resume="only a new run reads them, so the file may be gone",
    )
    prototypes_from: Literal["auto", "weights", "kmeans"] = setting(
        "auto",
        "weights: as the weights have them, else random; kmeans: centroids of the first embeddings; auto: kmeans where "
        "weights have none that fit",
    )
    adapt_steps: Auto | ZeroOrMore = setting(
        "auto",
        "steps without gradient before the first one, in which batch norm adapts; auto: 100 with weights, else 0",
    )
    freeze_backbone_epochs: Auto | ZeroOrMore = setting(
        "auto", "first epochs, in which the backbone does not move; auto: a twentieth of all with weights, else 0"
    )
    lora: Lora = Lora()


class Queue(Section):
    """Embeddings of earlier steps that take part in the codes; for small batches."""

    length: Auto | ZeroOrMore = setting("auto", "embeddings over all processes; 0: no queue")
    start_epoch: Auto | ZeroOrMore = setting("auto", "first epoch, from 0, in which the queue is used")


class TeacherSettings(Section):
    """A moving average of the network that gives the codes."""

    momentum: Momentum = setting(0.0, "of the average at the start, e.g. 0.996; 0: no teacher")
    final_momentum: float = setting(1.0, "of the average at the end, on a cosine from momentum")


class Swav(Section):
    """Codes and loss."""

    epsilon: Annotated[float, Range(ge=0.002, why="below, codes leave the range of numbers")] = setting(
        0.05, "of Sinkhorn: lower is sharper"
    )
    iterations: AtLeastOne = setting(3, "of Sinkhorn")
    temperature: Annotated[float, Range(ge=0.001, why="below, losses leave the range of numbers")] = setting(
        0.1, "of the softmax that predicts the codes"
    )
    assigning: Annotated[list[int], MinLen(1)] = setting(
        [0, 1],
        "crops whose codes the others predict, counted from 0 in the order of the groups (global, local)",
    )
    hard: bool = setting(False, "true: the strongest prototype of a code counts alone")
    freeze_prototypes: Auto | ZeroOrMore = setting("auto", "first steps, in which the prototypes do not move")
    queue: Queue = Queue()
    teacher: TeacherSettings = TeacherSettings()


class TeachersCrops(Section):
    """Further crops, which the teacher alone sees."""

    count: Annotated[int, Range(ge=0, le=64, unit="crops")] = setting(
        0, "crops of an image; 0: the teacher sees those of swav.assigning"
    )
    size: Pixels = setting(224, "height and width in pixels")
    scale: ShareOfArea = setting([0.14, 1.0], "share of the image's area that a crop covers")


class Distill(Section):
    """The trained teacher of method=distill."""

    weights: FilePath | None = setting(
        None,
        "the teacher's weights, of any library",
        resume="the file may have moved; other weights are refused",
    )
    backbone: str = setting("resnet50", "the teacher's backbone, as model.backbone")
    options: Free = setting({}, "passed to the teacher's backbone")
    prototypes_from: Literal["auto", "weights", "kmeans"] = setting(
        "auto",
        "weights: as the weights have them; kmeans: centroids of the teacher's embeddings; auto: kmeans where the "
        "weights have none",
    )
    crops: TeachersCrops = TeachersCrops()


class Optimizer(Section):
    """LARS, AdamW or Muon, and the learning rate: a linear warm-up, then a cosine."""

    name: Literal["lars", "adamw", "muon"] = setting(
        "lars",
        "LARS as in the paper; for vision transformers AdamW, or Muon for matrices of the backbone, AdamW for the rest",
    )
    base_lr: Auto | Factor = setting("auto", "learning rate after the warm-up")
    final_lr: Auto | FactorOrZero = setting("auto", "learning rate at the end")
    scale_lr_from: Annotated[int, Range(ge=1)] | None = setting(
        None,
        "images a step for which the learning rates hold; others scale them in proportion",
        expected="null or images a step, at least 1",
    )
    start_lr: FactorOrZero = setting(0.0, "learning rate at the start of the warm-up")
    warmup_epochs: Auto | NotNegative = setting("auto", "length of the warm-up, also parts of an epoch")
    weight_decay: Annotated[float, Range(ge=0), Range(le=1e6)] = setting(
        1e-6, "of all parameters; with adamw, muon or exclude_1d not of biases and norms"
    )
    momentum: Momentum = setting(0.9, "of lars")
    trust_coefficient: Factor = setting(0.001, "of lars: a step's length over the parameter's norm, at rate 1")
    exclude_1d: bool = setting(False, "true: lars has neither trust ratio nor weight decay for biases and norms")
    betas: Annotated[list[Annotated[float, Range(ge=0, le=0.9999999, what="each")]], Len(2, 2)] = setting(
        [0.9, 0.999], "of adamw, and of muon for what is no matrix"
    )
    muon_momentum: Momentum = setting(0.95, "of muon's matrices")
    layer_decay: Annotated[float, Range(gt=0, le=1)] = setting(
        1.0, "factor of the learning rate from each block of the backbone to the one before it"
    )
    backbone_lr_scale: Auto | Factor = setting(
        "auto", "factor of the backbone's learning rate; auto: 0.3 with weights, else 1"
    )
