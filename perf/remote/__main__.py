"""The loader on shards of a web server with a delay and a rate limit, beside the loader on the same shards on the disk.

    python -m perf.remote [--images 2000] [--latency 20] [--rate 100] [--seconds 5] [--rounds 3] [--json FILE]
    python -m perf.remote --work FOLDER --server ADDRESS

The contenders take turns: the disk; a cache of all images; a cache of a tenth of them; the same with data.neighbors.
The server is a process on this machine, so it takes CPU time from the loader; --server is another one that serves the
shards in FOLDER. Printed are images a second; that rate over the disk's, or over the link's where the link does not
allow the disk's; CPU time an image of the loader's process, without the server's, and the disk's over it, which is the
rate over the disk's where the server is elsewhere and the CPU is the limit; requests an image; bytes fetched over bytes
needed; and what data.neighbors costs in randomness: how many rows lie between an image and the nearest other one of its
batch, the median over an epoch. Before that two first starts on the program's own server: a scan that decodes every
image, and one of headers.
"""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from common.cli import Parser, at_least
from perf.images import make_jpegs
from perf.machine import machine
from perf.program import program
from perf.remote.server import server_process, serving

A_SHARD = 250  # images


def main(arguments: list[str]) -> int:
    parser = Parser(prog="python -m perf.remote", description=__doc__)
    parser.add_argument("--images", type=at_least(100), default=2000, help="JPEGs of 76 kB (default 2000)")
    parser.add_argument("--latency", type=float, default=20.0, help="ms before each answer (default 20)")
    parser.add_argument("--rate", type=float, default=100.0, help="MB/s of the server (default 100)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a turn (default 5)")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="turns of each contender (default 3)")
    parser.add_argument("--batch", type=at_least(1), default=64, help="images a step (default 64)")
    parser.add_argument("--neighbors", type=at_least(1), default=16, help="data.neighbors (default 16)")
    parser.add_argument("--backend", default="ffcv", help="pipeline.backend (default ffcv)")
    parser.add_argument("--work", type=Path, help="folder for images and caches (default: a temporary one)")
    parser.add_argument(
        "--server", metavar="ADDRESS", help="of a server of WORK/site-IMAGES, with this latency and rate"
    )
    parser.add_argument("--json", type=Path, help="write the report to this file")
    options = parser.parse_args(arguments)
    return program(lambda _: measure(options), show, options.json)


def measure(options: Namespace) -> dict[str, Any]:
    """The report: options, machine, load, and `contenders` by name."""
    if options.work:
        return _measured(options, options.work)
    with TemporaryDirectory(prefix="swave-remote-") as folder:
        return _measured(options, Path(folder))


def _measured(options: Namespace, work: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf

    from pipeline.dataset.open import open_splits

    site = write_shards(work, options.images)
    size = sum(file.stat().st_size for file in site.glob("*.tar"))
    common = {"test": None, "workers": 0, "image": None, "label": None}
    scans = {check: scan(site, check, size, options, work) for check in ("decode", "headers")}
    own = server_process(site, options.latency / 1e3, options.rate * 1e6)
    with nullcontext(options.server) if options.server else own as address:
        bounds = {"cache of all": size, "cache of a tenth": size // 10}
        places = {name: {"path": f"{address}/list.txt", "cache_bytes": f"{most}B"} for name, most in bounds.items()}
        places = {"disk": {"path": f"{site}/*.tar"}, **places}
        places[f"the same, {options.neighbors} neighbors"] = places["cache of a tenth"]
        tables = {
            name: open_splits(OmegaConf.create(common | place | {"cache": str(work / "caches" / name)}), False)[0]
            for name, place in places.items()
        }
        before = os.getloadavg()[0]
        contenders = take_turns(tables, options)
    return {
        "machine": machine(),
        "load": [round(before, 1), round(os.getloadavg()[0], 1)],
        "images": options.images,
        "latency_ms": options.latency,
        "rate_mb_per_second": options.rate,
        "scans": scans,
        "contenders": contenders,
    }


def scan(site: Path, check: str, size: int, options: Namespace, work: Path) -> dict[str, float]:
    """A first start with `data.check`, on shards that are larger than the cache."""
    from omegaconf import OmegaConf

    from pipeline.dataset.open import open_splits

    data = {"test": None, "workers": 0, "image": None, "label": None, "cache_bytes": f"{size // 10}B", "check": check}
    with (
        TemporaryDirectory(dir=work) as cache,
        serving(site, latency=options.latency / 1e3, rate=options.rate * 1e6) as server,
    ):
        begun = time.perf_counter()
        open_splits(OmegaConf.create(data | {"path": f"{server.address}/list.txt", "cache": cache}), False)
        return {
            "seconds": round(time.perf_counter() - begun, 2),
            "share_of_bytes": round(server.sent / size, 4),
            "requests_per_image": round(server.requests["GET"] / options.images, 3),
        }


def take_turns(tables: dict[str, Any], options: Namespace) -> dict[str, Any]:
    """Figures of each contender: the same loader over its table, in turns."""
    from perf.interleaved import Turn, timed
    from pipeline.crops import Crops, View
    from pipeline.loader import Loader

    crops = Crops((View(224, (0.14, 1.0)),) * 2 + (View(96, (0.05, 0.14)),) * 6)
    threads = len(os.sched_getaffinity(0))
    common = {"backend": options.backend, "seed": 0, "global_batch": options.batch, "threads": threads}
    loaders = {
        name: Loader(table, crops, neighbors=options.neighbors if "neighbors" in name else 1, **common)
        for name, table in tables.items()
    }

    def batches(loader: Loader) -> Iterator[int]:
        while True:
            for batch in loader:
                yield len(batch.rows)

    turns: dict[str, list[Turn]] = {name: [] for name in loaders}
    for _ in range(options.rounds):
        for name, loader in loaders.items():
            turns[name].append(timed(batches(loader), options.seconds, skip=3))
            loader.close()
    rates = {name: [turn.rate for turn in each] for name, each in turns.items()}
    cpu = {name: [1e3 * turn.cpu_seconds / turn.images for turn in each] for name, each in turns.items()}
    disk, figures = rates["disk"], {}
    for name, loader in loaders.items():
        figures[name] = {"images_per_second": round(median(rates[name]), 1)}
        over = [one / other for one, other in zip(rates[name], disk, strict=True)]
        remote = loader.feed.reader.remote
        if remote is not None:
            traffic = remote.traffic
            link = options.rate * 1e6 * traffic.images / traffic.fetched
            over = [one / min(other, link) for one, other in zip(rates[name], disk, strict=True)]
            figures[name] |= {
                "link_images_per_second": round(link, 1),
                "requests_per_image": round(traffic.requests / traffic.images, 3),
                "kept_share": round(traffic.kept / traffic.images, 3),
                "fetched_over_needed": round(traffic.fetched / traffic.needed, 4),
            }
        figures[name]["over_disk_or_link"] = round(median(over), 3)
        figures[name]["cpu_ms_per_image"] = round(median(cpu[name]), 3)
        shares = [other / one for one, other in zip(cpu[name], cpu["disk"], strict=True)]
        figures[name]["disk_cpu_over_own"] = round(median(shares), 3)
        figures[name]["rows_between"] = rows_between(loader)
    return figures


def rows_between(loader: Any) -> float:
    """How many rows lie between an image and the nearest other one of its batch: the median over an epoch."""
    whole = len(loader) * loader.global_batch
    batches = np.sort(loader._order(0)[:whole].reshape(-1, loader.global_batch))
    gaps = np.pad(np.diff(batches), ((0, 0), (1, 1)), constant_values=whole)
    return float(np.median(np.minimum(gaps[:, 1:], gaps[:, :-1]) - 1))


def write_shards(work: Path, count: int) -> Path:
    """Shards of made JPEGs, and a list of their names."""
    from pipeline.dataset.shards import Record, pack

    site = work / f"site-{count}"
    if not site.exists():
        files = sorted(make_jpegs(work / "jpegs", count, len(os.sched_getaffinity(0))).glob("*.jpg"))[:count]
        records = (Record(file.stem, file.read_bytes(), "jpg", -1) for file in files)
        pack(records, site, "shard", max_count=A_SHARD)
        for table in site.glob("table.*"):
            table.unlink()
    (site / "list.txt").write_text("".join(f"{file.name}\n" for file in sorted(site.glob("*.tar"))))
    return site


def show(report: dict[str, Any]) -> None:
    print(
        f"{report['images']} JPEGs; {report['latency_ms']:g} ms, {report['rate_mb_per_second']:g} MB/s; "
        f"{report['machine']['cores']} cores, load {report['load'][0]} before, {report['load'][1]} after"
    )
    for check, figures in report["scans"].items():
        words = ", ".join(f"{figure} {name.replace('_', ' ')}" for name, figure in figures.items())
        print(f"first start, data.check={check}: {words}")
    columns = (
        "images_per_second", "over_disk_or_link", "cpu_ms_per_image", "disk_cpu_over_own", "requests_per_image",
        "kept_share", "fetched_over_needed", "rows_between",
    )  # fmt: skip
    print(f"{'':24}" + "".join(f"{name.replace('_', ' '):>20}" for name in columns))
    for name, figures in report["contenders"].items():
        print(f"{name:24}" + "".join(f"{figures.get(column, ''):>20}" for column in columns))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
