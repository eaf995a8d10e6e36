"""Mean and standard deviation of the channels of a dataset: once over all pixels, exact.

    python -m pipeline.stats DATA [--channels N] [--layout hwc] [--stretch 0.5 99.5] [--tables data/tables]

The result stands in `<tables>/statistics/<name>-<key>.json`. A run whose crops.mean and crops.std are auto takes it, if
its images keep their own channels, and computes it first where it is missing. The key changes with the images.
"""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from functools import reduce
from operator import add
from pathlib import Path

from common.cli import EXIT_MISTAKE, Parser, at_least, print_error
from common.files import lock, write_atomically
from common.processes import in_processes
from common.progress import progress_bar
from pipeline.dataset.channels.moments import Moments
from pipeline.dataset.finding.choice import Choice, channels_of
from pipeline.dataset.open import find_split, open_dataset
from pipeline.dataset.reader import Reader, ReadError
from pipeline.dataset.stretching import identity, stretched, table_of
from pipeline.dataset.table import DatasetError, SampleTable

CHUNK = 64  # images a task
DIGITS = 6  # of the numbers that a run takes


@dataclass(frozen=True)
class Statistics:
    """pixels: the format, in words. images: that were read. mean, std: of each channel, where 1 is the largest uint8 or
    uint16, and 1 in float32. lowest, highest: values of each channel as the files have them."""

    pixels: str
    images: int
    mean: list[float]
    std: list[float]
    lowest: list[float]
    highest: list[float]


def main(arguments: list[str]) -> int:
    parser = Parser("python -m pipeline.stats", __doc__.splitlines()[0])
    parser.add_argument("data", help="images, as data.path takes them; of two splits the training images")
    parser.add_argument("--channels", default="auto", help="auto, rgb or a number, as data.channels (default auto)")
    parser.add_argument("--layout", default="auto", choices=("auto", "hwc", "chw"), help="as data.layout")
    parser.add_argument("--pages", default="channels", choices=("channels", "images"), help="as data.pages")
    parser.add_argument("--bands", help="words of files' names, e.g. B02,B03,B08, as data.bands")
    parser.add_argument(
        "--stretch",
        type=float,
        nargs=2,
        metavar="P",
        help="percentiles that become black and white, as data.stretch",
    )
    parser.add_argument("--tables", type=Path, default=Path("data/tables"), help="as data.cache (default data/tables)")
    parser.add_argument("--workers", type=at_least(0), default=0, help="processes (default 0: one a core)")
    options = parser.parse_args(arguments)
    try:
        choice = Choice(channels=channels_of(options.channels), layout=options.layout)
        choice = choice._replace(bands=options.bands, pages=options.pages)
        shown = " ".join(f"{percent:g}" for percent in options.stretch or ())
        workers = options.workers or len(os.sched_getaffinity(0))
        table = open_dataset(find_split(options.data)[0], options.tables, workers, True, "DATA", choice)
        if options.stretch:
            if not 0 <= options.stretch[0] < options.stretch[1] <= 100:
                raise DatasetError(f"--stretch {shown}: expected 0 <= low < high <= 100")
            table = stretched(table, options.stretch, "auto", options.tables, workers)
        statistics, file = statistics_of(table, options.tables, workers)
    except (ValueError, OSError) as error:
        print_error(re.sub(r"data\.(channels|layout|bands|pages|stretch)", r"--\1", str(error)))
        return EXIT_MISTAKE
    print(f"{options.data}: {statistics.images:,} images, {statistics.pixels}; {file}")
    if options.stretch:
        print(f"data.stretch=[{shown.replace(' ', ', ')}] data.range={[list(ends) for ends in table.pixels.range]}")
    print(f"crops.mean={rounded(statistics.mean)} crops.std={rounded(statistics.std)}")
    print(f"lowest {rounded(statistics.lowest)}, highest {rounded(statistics.highest)}")
    return 0


def statistics_of(table: SampleTable, cache: Path, workers: int = 1, progress: bool = True) -> tuple[Statistics, Path]:
    """The statistics of a table's usable images, from their file in `cache`, or computed and written there; and that
    file. If several processes ask, the first computes and the others wait.

    workers: processes. Raises DatasetError if no image can be read, a channel has the same value everywhere, or the
    cache cannot be written.
    """
    file = Path(cache) / "statistics" / f"{table.root.name or 'root'}-{identity(table)[:12]}.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with lock(file.with_suffix(".lock")):
            with suppress(OSError, ValueError, TypeError):  # missing, damaged or of another version
                return Statistics(**json.loads(file.read_text())), file
            statistics = computed(table, workers, progress)
            write_atomically(file, json.dumps(asdict(statistics), indent=1) + "\n")
    except OSError as error:
        problem = f"cannot write statistics to {cache} ({error.strerror or error})"
        raise DatasetError(f"data.cache={cache}: {problem}; set another") from None
    return statistics, file


def computed(table: SampleTable, workers: int, progress: bool = True) -> Statistics:
    """Read every usable image once. Raises DatasetError as `statistics_of` does."""
    rows = table.usable()
    parts = [rows[first : first + CHUNK] for first in range(0, len(rows), CHUNK)]
    tasks = (table_of(table, part) for part in parts)
    workers = workers if len(parts) > 8 else 1  # starting a process costs as much as decoding a few hundred images
    found: list[Moments] = []
    images = 0
    with progress_bar(len(rows), "statistics", "img", progress) as bar:
        for part, (moments, read) in zip(parts, in_processes(_of_table, tasks, workers), strict=True):
            found += moments
            images += read
            bar.update(len(part))
    if not images:
        raise DatasetError(f"{table.root}: no image can be read any more")
    whole, white = reduce(add, found), table.pixels.white
    for channel, deviation in enumerate(whole.std):
        if not deviation:
            value = f"channel {channel} is {whole.lowest[channel]:g} in every pixel of every image"
            raise DatasetError(f"{table.root}: {value}, so it cannot be normalized; leave it out of the images")
    mean, std = ([value / white for value in values] for values in (whole.mean, whole.std))
    return Statistics(str(table.pixels), images, mean, std, list(whole.lowest), list(whole.highest))


def rounded(values: list[float]) -> list[float]:
    """The numbers as a run takes and prints them."""
    return [float(f"{value:.{DIGITS}g}") for value in values]


def _of_table(table: SampleTable) -> tuple[list[Moments], int]:
    """The moments of a table's readable images, merged to one ([] without any), and their number."""
    found = []
    with closing(Reader(table, threads=1)) as reader:
        for row in range(len(table)):
            with suppress(ReadError):  # training replaces such an image
                found.append(Moments.of(reader.native(row) if table.pixels.native else reader.decode(row)))
    return ([reduce(add, found)] if found else []), len(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
