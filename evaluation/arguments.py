"""Arguments that all sub-commands of evaluate.py share. Nothing heavy is imported here."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from os.path import expanduser
from pathlib import Path

from common.cli import Parser

BACKENDS = ("dali", "ffcv", "torchvision")


def command_parser(command: str, description: str | None, several: bool = True) -> argparse.ArgumentParser:
    """A sub-command's parser with the shared arguments. several: whether the command compares backbones."""
    parser = Parser(f"evaluate.py {command}", description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "backbone", metavar="CKPT", type=expanduser, help="a run, a file, a library's network: see evaluate.py --help"
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        nargs="?",
        type=expanduser,
        help="images in folders by class, shards, .beton; default: the run's own",
    )
    if several:
        parser.add_argument(
            "--peers", metavar="CKPT", nargs="+", default=[], help="further backbones for the same table, e.g. random"
        )
    group = parser.add_argument_group("data")
    group.add_argument(
        "--test",
        metavar="DATA",
        type=expanduser,
        help="images to score; default: the run's own, val/ or test/ next to train/, or a tenth",
    )
    group.add_argument(
        "--image", metavar="NAME", help="which image of a sample: see data.image; default: the run's own"
    )
    group.add_argument("--bands", metavar="WORDS", help="files of an image: see data.bands; default: the run's own")
    group.add_argument(
        "--pages", choices=("channels", "images"), help="of a TIFF: see data.pages; default: the run's own"
    )
    group.add_argument("--label", metavar="NAME", help="where labels are: see data.label; default: the run's own")
    group.add_argument("--train-list", metavar="FILE", type=Path, help="training images, one name per line")
    group.add_argument("--test-list", metavar="FILE", type=Path, help="images to score, one name per line")
    group.add_argument(
        "--tables", metavar="DIR", type=expanduser, default="data/tables", help="folder for tables of scanned folders"
    )
    group = parser.add_argument_group("crops and features")
    group.add_argument("--size", type=int, help="pixels of a crop; default: the recipe's, or 224 for foreign weights")
    group.add_argument(
        "--share", type=float, help="part of the shorter side that a central crop covers: 0.875 is 224 of 256"
    )
    group.add_argument("--stage", help="part of the network whose output is evaluated, e.g. layer3; default: the last")
    group.add_argument(
        "--pool", type=int, default=0, help="side of the pooling windows on the stage's map; 0: the whole map"
    )
    group = parser.add_argument_group("machine")
    group.add_argument("--backend", default="dali", help=", ".join(BACKENDS))
    group.add_argument(
        "--threads", type=int, default=0, help="of the pipeline per process; 0: an equal share of the cores"
    )
    group.add_argument("--batch", type=int, default=256, help="images per step over all processes (default 256)")
    group.add_argument("--precision", default="fp32", help="of the backbone: fp32 or bf16")
    group.add_argument(
        "--cache",
        metavar="DIR",
        type=expanduser,
        default="data/features",
        help="folder for cached features; none: cache nothing",
    )
    group.add_argument("--seed", type=int, default=31, help="for crops, random weights and subsets")
    group.add_argument("--json", metavar="FILE", type=Path, help="also write the result to this file")
    return parser


def add_seeds(parser: argparse.ArgumentParser) -> None:
    """Add --seeds, how often the evaluation is repeated."""
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        help="seeds from --seed on; of several, mean and 95 %% interval (default 1)",
    )


def add_scale(parser: argparse.ArgumentParser) -> None:
    """Add --scale, the area of training crops."""
    parser.add_argument(
        "--scale", type=float, nargs=2, default=(0.08, 1.0), metavar=("LOW", "HIGH"),
        help="share of the image's area that a training crop covers (default 0.08 1, the protocol's, for photographs\n"
        "of about 500 pixels; for images of about 28 pixels give 1 1)",
    )  # fmt: skip


def check_number(options: argparse.Namespace, name: str, above: float = 0.0, zero: bool = False) -> None:
    """Raises ValueError (one line) unless option `name` is None or a finite number above `above`, or `above` itself if
    zero is true."""
    value = getattr(options, name)
    if value is not None and not (above < value < math.inf or (zero and value == above)):
        words = f"{above:g} or more" if zero else f"more than {above:g}"
        raise ValueError(f"--{name.replace('_', '-')}={value}: expected a number, {words}")


def check_scale(scale: Sequence[float]) -> None:
    """Raises ValueError (one line)."""
    low, high = scale
    if not 0 < low <= high <= 1:
        raise ValueError(f"--scale={low:g} {high:g}: expected two shares of the area, 0 < LOW <= HIGH <= 1")


def check_arguments(options: argparse.Namespace) -> None:
    """Raises ValueError (one line) for arguments that are wrong for any data."""
    for name, low in (("size", 1), ("threads", 0), ("batch", 1), ("pool", 0), ("seed", 0)):
        value = getattr(options, name)
        if value is not None and value < low:
            raise ValueError(f"--{name}={value}: expected an integer of at least {low}")
    if options.share is not None and not 0 < options.share <= 1:
        raise ValueError(f"--share={options.share}: expected more than 0, at most 1")
    if getattr(options, "seeds", 1) < 1:
        raise ValueError(f"--seeds={options.seeds}: expected an integer of at least 1")
    if options.backend not in BACKENDS:
        raise ValueError(f"--backend={options.backend}: expected {', '.join(BACKENDS)}")
    if options.precision not in ("fp32", "bf16"):
        raise ValueError(f"--precision={options.precision}: expected fp32 or bf16")
    for name in ("train_list", "test_list"):
        file = getattr(options, name)
        if file is not None and not file.is_file():
            raise ValueError(f"--{name.replace('_', '-')}={file}: no such file")
    check_out("--json", options.json)


def check_out(name: str, path: Path | None) -> None:
    """Raises ValueError if no file can be written to `path`. name: the option's, for the message."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise ValueError(f"{name}={path}: {'is a folder' if path.is_dir() else 'its folder does not exist'}")


def numbers(option: str, text: str, low: float = 0.0, whole: bool = False) -> list[float]:
    """Parses numbers with commas, `0.1,0.3`, all different and above `low`; in order. Raises ValueError (one line)."""
    try:
        values = [int(part) if whole else float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(low < value < math.inf for value in values) or len(set(values)) < len(values):
        kind = "integers" if whole else "numbers"
        raise ValueError(f"{option}={text}: expected different {kind} above {low:g} with commas between them")
    return values
