"""Readers of files and variables that others wrote, each with valid inputs and a check of what was accepted.

A reader gets the path of a file with the input. It raises one of REFUSALS with one line, or returns after assertions
about the result.
"""

import io
import os
import shutil
import tarfile
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from common.cli import ERROR_PREFIX, UserError, error_line
from common.files import fingerprint
from common.slurm import MOST_NODES, expand_counts
from config.recipe import load_config
from evaluation.progress import load_progress, save_progress
from evaluation.subsets import listed_rows
from launch.nodes import expand_hosts, read_hostfile
from model.weights.files import read_weights
from pipeline.conversion.columnar import samples
from pipeline.dataset.beton import read_beton, scan_beton
from pipeline.dataset.channels.bands import packed
from pipeline.dataset.channels.decode import decode_native
from pipeline.dataset.channels.format import WHITE
from pipeline.dataset.finding.choice import NOT_CHOSEN
from pipeline.dataset.folder import scan_folder
from pipeline.dataset.images import BadImage, decode, probe
from pipeline.dataset.inside.scan import scan_hdf5
from pipeline.dataset.reader import Reader
from pipeline.dataset.records.images import LISTERS
from pipeline.dataset.table import DECODE, SampleTable, State
from pipeline.dataset.tar_images import list_shards
from pipeline.dataset.tars import Range, list_tar
from support.native.images import gray_png, npy, npz, tiff, tiles, write_tiles
from support.odd_images import plain_images
from training.checkpoint.save_load import damage_of, load_checkpoint, save_checkpoint
from training.checkpoint.shards import CheckpointError

REFUSALS = (UserError, CheckpointError, BadImage)  # and a ValueError that begins with the name of a file of weights
LONGEST_LINE = 2000


@dataclass(frozen=True)
class Target:
    """seeds: makes valid inputs. read: see above. suffix: of the input's file. changes: how the input is changed."""

    seeds: object
    read: object
    suffix: str = ""


def refuses(target, data, folder):
    """Whether the reader refuses the input. Any other error passes; AssertionError for a refusal that is not a line."""
    path = folder / f"input{target.suffix}"
    path.write_bytes(data)
    try:
        target.read(path)
    except REFUSALS as error:
        line = error_line(error)
    except ValueError as error:
        line = error_line(error)
        assert str(error).startswith("weights "), f"{type(error).__name__}: {error}"
    else:
        return False
    assert len(ERROR_PREFIX) < len(line) < LONGEST_LINE, f"not one line: {line!r}"
    return True


# ---------------------------------------------------------------------------------------------- texts
def read_config(path):
    config = load_config([str(path), "data.path=images"])
    assert (
        config.run.epochs >= 1 and config.run.batch_size >= 1 and config.method in ("swav", "deepclusterv2", "selav2")
    )


def read_override(path):
    text = path.read_bytes().decode("utf-8", "replace")
    config = load_config(["config/demo.yaml", text] if "=" in text else ["config/demo.yaml", f"run.directory={text}"])
    assert config.run.epochs >= 1


def read_hosts(path):
    nodes = read_hostfile(path, 2)
    assert nodes and len({node.host for node in nodes}) == len(nodes)
    assert all(1 <= node.processes < 10**6 and node.host.split() == [node.host] for node in nodes)


def read_node_list(path):
    hosts = expand_hosts(path.read_bytes().decode("utf-8", "replace"))
    assert 1 <= len(hosts) <= MOST_NODES * 100 and all(host and not set(host) & set(",[] \n") for host in hosts)


def read_counts(path):
    counts = expand_counts(path.read_bytes().decode("utf-8", "replace"))
    assert 1 <= len(counts) <= MOST_NODES and min(counts) >= 0


def read_list(path):
    rows = listed_rows(small_table(), path, "--train-list")
    assert len(set(rows.tolist())) == len(rows) and rows.min(initial=0) >= 0 and rows.max(initial=0) < 6


# ---------------------------------------------------------------------------------------------- images
def read_image(path):
    found = probe(path.read_bytes())
    if found.state == State.QUARANTINED:
        raise BadImage(found.reason)
    pixels = decode(path.read_bytes())
    assert pixels.dtype == np.uint8 and pixels.shape == (found.height, found.width, 3)


def read_table(path):
    table = SampleTable.load(path)
    table.digest()
    assert len(table.usable()) + len(table.quarantine) == len(table)


def read_tar(path):
    members, size = list_tar(Range(str(path))), path.stat().st_size
    assert len(members.names) == len(members.offsets) == len(members.lengths)
    for name, offset, length in zip(members.names, members.offsets, members.lengths, strict=True):
        assert offset > 0 and length >= 0 and offset + length <= size
        assert not name.startswith("/") and ".." not in name.split("/")
    assert all(label is None or isinstance(label, str) or label >= -1 for label in members.labels.values())


def read_beton_file(path):
    beton, size = read_beton(path), path.stat().st_size
    assert (beton.offset >= 0).all() and (beton.length >= 0).all() and (beton.offset + beton.length <= size).all()
    if len(beton) <= 64:  # a header may claim no more samples than the file has records
        assert len(scan_beton(beton, progress=False)) == len(beton)


def read_channels(path):
    """Any image with its own channels: arrays, TIFF, 16-bit PNG, DICOM, and files of bands in one piece."""
    image = decode_native(path.read_bytes())
    assert image.ndim == 3 and image.size and str(image.dtype) in WHITE


def read_hdf5_file(path):
    table = scan_hdf5(list_shards([path]), 1, False, NOT_CHOSEN, DECODE)
    reader = Reader(table, threads=1)
    for row in table.usable()[:8].tolist():
        assert reader.decode(row).shape == (table.height[row], table.width[row], 3)


def read_columns(path):
    for sample in samples(str(path)):
        assert isinstance(sample.data, bytes) and -1 <= sample.label < 2**31


# ---------------------------------------------------------------------------------------------- tensors
def read_checkpoint(path):
    """The input is a file of a checkpoint, state.json or rank-00000.safetensors, its name in the first byte."""
    data, folder = path.read_bytes(), path.parent / "step-000000004"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole_checkpoint(), folder)
    name = ("state.json", "rank-00000.safetensors", "manifest.json")[data[0] % 3 if data else 0]
    before = (folder / name).read_bytes()
    (folder / name).write_bytes(data[1:])
    if name != "manifest.json":  # not noticed by its digest, as if another program had written it
        assert data[1:] == before or damage_of(folder)
    elif not damage_of(folder):
        return
    state, saved = load_checkpoint(folder, {"config": dict})
    for kind in saved.kinds():
        assert kind
    for tensors in saved.ranks:
        for tensor in tensors.values():
            assert tensor.nbytes <= len(data) + 2**20
    assert isinstance(state["step"], int)


def read_weight_file(path):
    for tensor in read_weights(path).values():
        assert tensor.nbytes <= path.stat().st_size * 100 + 2**20


def read_progress(path):
    network, optimizer = trained_layer()
    assert load_progress(path, network, optimizer) in ([], [[0.5]])


# ---------------------------------------------------------------------------------------------- valid inputs
def recipes():
    return [Path("config/demo.yaml").read_bytes(), Path("config/default.yaml").read_bytes().partition(b"\nmodel:")[0]]


def overrides():
    return [
        *(b"run.epochs=7", b"crops.global.scale=[0.2,1.0]", b"optimizer.base_lr=4.8", b"data.path=/x=y"),
        *(b"model.options={depths: [1, 2]}", b"checkpoint.every=10 minutes", b"engine.deepspeed.steps_per_print=9"),
    ]


def hostfiles():
    return [b"node1 slots=8\nnode2 slots=8  # comment\n\n# all\nuser@10.0.0.1\n"]


def node_lists():
    return [b"gpu[01-03,7],login", b"rack[1-2]n[01,03]-ib", b"tux-[1-2].site.org,x"]


def counts():
    return [b"4(x2),3", b"8", b"2(x3),1(x2)"]


def name_lists():
    return [b"a/0.png cat\nb/4.png\n2\n", b"./a/1.png\n"]


def images():
    return [data for data in plain_images().values() if len(data) < 20_000]


def tables():
    return [saved_table().read_bytes()]


def tars():
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in (
            ("a.png", images()[0]),
            ("a.cls", b"3"),
            ("b.json", b'{"label": 5}'),
            ("sub/b.jpg", b"jpeg"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return [content.getvalue()]


@cache
def beton_of(folder):
    from pipeline.conversion.rewrite import Options
    from pipeline.convert import convert

    out = scratch() / f"{folder}.beton"
    convert(scratch() / folder, out, Options("beton"), workers=1, progress=False)
    return out.read_bytes()


def array_betons():
    write_tiles(scratch() / "arrays", tiles(4, 6))
    return [beton_of("arrays")]


def channel_files():
    tile = tiles(1, 6)[0]
    planes = [tiff(tile[..., channel], compression="zlib") for channel in range(2)]
    bands = [packed(planes), packed([npy(tile[..., 0])] * 3)]
    return [npy(tile), npz(image=tile), gray_png(tile[..., 0]), tiff(tile), *bands]


def dicom_files():
    from support.native.dicoms import dicom

    pixels = tiles(3, 6)[0][..., 0]
    return [dicom(pixels, RescaleSlope="2", RescaleIntercept="-10"), dicom(pixels, "MONOCHROME1")]


def hdf5_files():
    import h5py

    images, found = np.stack(tiles(4, 6)), []
    for name, settings in (("ranges", {}), ("inside", {"chunks": (1, 6, 6, 4), "compression": "gzip"})):
        with h5py.File(scratch() / f"{name}.h5", "w") as file:
            file.create_dataset("images", data=images, **settings)
            file["labels"] = np.arange(4)
        found.append((scratch() / f"{name}.h5").read_bytes())
    return found


def parquets():
    import pyarrow
    from pyarrow import parquet

    content = io.BytesIO()
    rows = pyarrow.table({"image": [{"bytes": images()[0], "path": "a.png"}] * 3, "label": [0, 1, 2]})
    parquet.write_table(rows, content)
    return [content.getvalue()]


def records(kind, *names):
    """A target of files that a library wrote: what is listed must be in the file."""
    written = Path(__file__).parents[2] / "pipeline/written"

    def read(path):
        listed = LISTERS[kind](str(path), NOT_CHOSEN)
        for offset, length in zip(listed.offsets, listed.lengths, strict=True):
            assert offset >= 0 <= length
            assert offset + length <= path.stat().st_size

    return Target(lambda: [(written / name).read_bytes() for name in names], read)


def checkpoint_files():
    names = ("state.json", "rank-00000.safetensors", "manifest.json")
    return [bytes([number]) + (whole_checkpoint() / name).read_bytes() for number, name in enumerate(names)]


def torch_files():
    import torch

    content = io.BytesIO()
    torch.save({"state_dict": {"module.conv1.weight": torch.ones(4, 3)}}, content)
    return [content.getvalue()]


def safetensors_files():
    import torch
    from safetensors.torch import save

    return [save({"backbone.conv1.weight": torch.ones(4, 3), "n": torch.zeros((), dtype=torch.int64)})]


def progress_files():
    save_progress(scratch() / "progress", *trained_layer(), [[0.5]])
    return [(scratch() / "progress").read_bytes()]


TARGETS = {
    "recipe": Target(recipes, read_config, ".yaml"),
    "key=value": Target(overrides, read_override),
    "hostfile": Target(hostfiles, read_hosts),
    "SLURM node list": Target(node_lists, read_node_list),
    "SLURM counts": Target(counts, read_counts),
    "list of names": Target(name_lists, read_list),
    "image": Target(images, read_image),
    "sample table": Target(tables, read_table, ".npz"),
    "tar": Target(tars, read_tar, ".tar"),
    ".beton": Target(lambda: [beton_of("images")], read_beton_file, ".beton"),
    ".beton of arrays": Target(array_betons, read_beton_file, ".beton"),
    "channels, bands": Target(channel_files, read_channels),
    **({"DICOM": Target(dicom_files, read_channels)} if find_spec("pydicom") else {}),
    **({"HDF5": Target(hdf5_files, read_hdf5_file, ".h5")} if find_spec("h5py") else {}),
    "MDS": records("mds", "mds/jpeg/shard.00001.mds", "mds/views/shard.00000.mds", "mds/pil/shard.00000.mds"),
    "LMDB": records("lmdb", "lmdb/caffe_encoded_lmdb/data.mdb", "lmdb/classes.lmdb/data.mdb", "lmdb/pickled.lmdb"),
    "Parquet": Target(parquets, read_columns, ".parquet"),
    "checkpoint": Target(checkpoint_files, read_checkpoint),
    "weights, torch": Target(torch_files, read_weight_file, ".pth"),
    "weights, safetensors": Target(safetensors_files, read_weight_file, ".safetensors"),
    "unfinished training": Target(progress_files, read_progress),
}


@cache
def scratch():
    """A folder of this process with six small images of two classes."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="swave-fuzz-"))
    for index in range(6):
        file = folder / "images" / "ab"[index // 3] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(plain_images()["rgb.png"])
    return folder


@cache
def small_table():
    return scan_folder(scratch() / "images", progress=False)


@cache
def saved_table():
    small_table().save(scratch() / "table.npz")
    return scratch() / "table.npz"


@cache
def whole_checkpoint():
    import torch

    tensors = {"master/a/0": torch.ones(8), "own/b": torch.zeros(2), "alike/c": torch.ones(3)}
    path = save_checkpoint(scratch() / "checkpoints", {"step": 4, "config": {}}, tensors, keep=1)
    assert fingerprint(path / "state.json")["bytes"] == os.path.getsize(path / "state.json")
    return path


def trained_layer():
    import torch

    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return network, optimizer
