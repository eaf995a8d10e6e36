"""Writes the files of this folder with the libraries that own the formats; the tests of swave only read them.

    python write.py images mds litdata lmdb ...       # in an environment with the packages of the format

images      Pillow 13.0.0
mds         mosaicml-streaming 0.13.0
litdata     litdata 0.2.76
hdf5        h5py 3.16.0
datasets    datasets 5.2.0
datasets_4  datasets 4.8.0
lance       pylance 14.0.2
tfds        tensorflow-datasets 4.9.10, tensorflow-cpu 2.21.0 (and importlib_resources)
img2dataset img2dataset 1.47.0
lmdb        lmdb 3.0.0 (LMDB 0.9.36); Caffe's Datum by protobuf, from the fields of caffe.proto
"""

import io
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
COUNT = 6
LABELS = [2, 0, 1, 1, 0, 2]
NAMES = ["cat", "dog", "owl"]


def jpeg(number):
    return (HERE / "images" / f"{number}.jpg").read_bytes()


def picture(number, mode="RGB"):
    return Image.open(io.BytesIO(jpeg(number))).convert(mode)


def folder(*parts):
    """A new folder of this name."""
    path = HERE.joinpath(*parts)
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def images():
    out = folder("images")
    out.mkdir()
    for number in range(COUNT):
        height, width = 8 + number, 12
        rows, columns = np.mgrid[0:height, 0:width]
        pixels = np.stack([rows * 20, columns * 15, np.full_like(rows, 40 * number)], axis=2)
        Image.fromarray(pixels.astype(np.uint8)).save(out / f"{number}.jpg", quality=90, subsampling=0)


def mds():
    from streaming import MDSWriter

    def write(path, columns, sample, **options):
        with MDSWriter(out=str(path), columns=columns, size_limit=4096, **options) as writer:
            for number in range(COUNT):
                writer.write(sample(number))

    numbered = {"image": "jpeg", "label": "int", "caption": "str"}

    def of_jpeg(number):
        image = Image.open(HERE / "images" / f"{number}.jpg")  # the writer copies the file that the image names
        return {"image": image, "label": LABELS[number], "caption": f"photo {number}"}

    write(folder("mds", "jpeg"), numbered, of_jpeg)
    for compression in ("zstd", "gz", "br", "snappy"):
        write(folder("mds", compression), numbered, of_jpeg, compression=compression)
    write(folder("mds", "bytes"), {"img": "bytes", "class": "str"},
          lambda number: {"img": jpeg(number), "class": NAMES[LABELS[number]]})  # fmt: skip
    write(folder("mds", "png"), {"image": "png", "label": "uint8"},
          lambda number: {"image": picture(number), "label": np.uint8(LABELS[number])})  # fmt: skip
    write(folder("mds", "pil"), {"image": "pil", "label": "int32"},
          lambda number: {"image": picture(number), "label": np.int32(LABELS[number])})  # fmt: skip
    write(folder("mds", "gray"), {"image": "pil", "label": "int"},
          lambda number: {"image": picture(number, "L"), "label": LABELS[number]})  # fmt: skip
    write(folder("mds", "views"), {"views": "jpeg_array", "label": "int"},
          lambda number: {"views": [jpeg(number), jpeg((number + 1) % COUNT)], "label": LABELS[number]})  # fmt: skip
    listed = {"pages": "list[jpeg]", "label": "int"}
    write(folder("mds", "list"), listed,
          lambda number: {"pages": [of_jpeg(i)["image"] for i in (number, 0)], "label": LABELS[number]})  # fmt: skip
    write(folder("mds", "no-image"), {"caption": "str", "label": "int"},
          lambda number: {"caption": f"photo {number}", "label": number})  # fmt: skip


def litdata():
    from litdata.streaming import writer as module

    def write(path, sample, **options):
        writer = module.BinaryWriter(str(path), chunk_size=4, **options)
        for number in range(COUNT):
            writer[number] = sample(number)
        writer.done()
        writer.merge(1)

    import torch

    def of_jpeg(number):
        return {"image": Image.open(HERE / "images" / f"{number}.jpg"), "label": LABELS[number], "index": number}

    write(folder("litdata", "jpeg"), of_jpeg)
    write(folder("litdata", "pil"), lambda number: {"image": picture(number), "class": NAMES[LABELS[number]]})
    write(folder("litdata", "tuple"), lambda number: (jpeg(number), LABELS[number]))
    planes = [torch.from_numpy(np.asarray(picture(number)).transpose(2, 0, 1).copy()) for number in range(COUNT)]
    write(folder("litdata", "tensor"), lambda number: {"x": planes[number], "y": LABELS[number]})
    write(folder("litdata", "numpy"), lambda number: {"x": np.asarray(picture(number)), "y": LABELS[number]})
    write(folder("litdata", "array"), lambda number: [of_jpeg(number)["image"], of_jpeg(0)["image"]])
    # Dicts of bytes, text and numbers become rows of Arrow.
    write(folder("litdata", "rows"), lambda number: {"image": jpeg(number), "label": LABELS[number]})
    nested = {"file": "x.jpg", "size": {"height": 8}}
    write(folder("litdata", "nested"),
          lambda number: {"photo": {"data": jpeg(number), **nested}, "class": NAMES[LABELS[number]]})  # fmt: skip
    write(folder("litdata", "zstd"), of_jpeg, compression="zstd")
    write(folder("litdata", "zstd-chunk"), of_jpeg, compression="zstd", compression_level="chunk")


def datum_type():
    """The class of Caffe's Datum."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    message = file.message_type.add(name="Datum")
    kinds = {
        "channels": field.TYPE_INT32, "height": field.TYPE_INT32, "width": field.TYPE_INT32, "data": field.TYPE_BYTES,
        "label": field.TYPE_INT32, "float_data": field.TYPE_FLOAT, "encoded": field.TYPE_BOOL,
    }  # fmt: skip
    for number, (name, kind) in enumerate(kinds.items(), 1):
        many = field.LABEL_REPEATED if name == "float_data" else field.LABEL_OPTIONAL
        message.field.add(name=name, number=number, type=kind, label=many)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.Datum"))


def lmdb():
    import lmdb as library

    def write(path, items, **options):
        environment = library.open(str(path), map_size=1 << 24, **options)
        with environment.begin(write=True) as transaction:
            for key, value in items:
                transaction.put(key, value)
        environment.close()
        lock = path / "lock.mdb" if path.is_dir() else path.with_name(f"{path.name}-lock")
        lock.unlink()

    datum = datum_type()

    def of_caffe(number, encoded):
        height, width = np.asarray(picture(number)).shape[:2]
        planes = np.asarray(picture(number))[:, :, ::-1].transpose(2, 0, 1).tobytes()  # blue, green, red
        shape = {} if encoded else {"channels": 3, "height": height, "width": width}
        made = datum(data=jpeg(number) if encoded else planes, label=LABELS[number], encoded=encoded, **shape)
        return b"%08d_%d.jpg" % (number, number), made.SerializeToString()

    write(folder("lmdb", "caffe_encoded_lmdb"), [of_caffe(number, True) for number in range(COUNT)])
    write(folder("lmdb", "caffe_raw_lmdb"), [of_caffe(number, False) for number in range(COUNT)])
    # A large image has pages of its own; 300 keys need more than one page, so that the tree has branches.
    large = io.BytesIO()
    Image.effect_noise((80, 80), 60).save(large, "PNG", compress_level=0)
    plain = [(b"%s/%03d" % (NAMES[number % 3].encode(), number), jpeg(number % COUNT)) for number in range(30)]
    write(folder("lmdb", "classes.lmdb"), [*plain, (b"owl/large", large.getvalue())])
    pairs = [(b"%d" % number, pickle.dumps((jpeg(number), LABELS[number]))) for number in range(COUNT)]
    keys = pickle.dumps([key for key, _ in pairs])
    target = folder("lmdb", "pickled.lmdb")
    target.unlink(missing_ok=True)
    write(target, [*pairs, (b"__keys__", keys), (b"__len__", pickle.dumps(COUNT))], subdir=False)


def hdf5():
    import h5py

    planes = [np.asarray(Image.fromarray(np.asarray(picture(number))[:8])) for number in range(COUNT)]
    out = folder("hdf5")
    out.mkdir()
    with h5py.File(out / "encoded.h5", "w") as file:
        images = file.create_dataset("images", (COUNT,), h5py.vlen_dtype(np.uint8))
        for number in range(COUNT):
            images[number] = np.frombuffer(jpeg(number), np.uint8)
        file["labels"] = LABELS
        file["names"] = [NAMES[label] for label in LABELS]
    with h5py.File(out / "arrays.hdf5", "w") as file:
        file.create_dataset("x", data=np.stack(planes), chunks=True, compression="gzip")
        file["y"] = np.array([NAMES[label] for label in LABELS], "S3")
    # The layout of solo-learn: a group for each class, a compressed array of bytes for each image.
    with h5py.File(out / "groups.h5", "w") as file:
        for number in range(COUNT):
            data = np.frombuffer(jpeg(number), np.uint8)
            group = file.require_group(NAMES[LABELS[number]])
            group.create_dataset(f"{number}.jpg", data=data, compression="gzip", compression_opts=9)
    with h5py.File(out / "splits.h5", "w") as file:
        for number in range(COUNT):
            file[f"{'train' if number < 4 else 'val'}/{NAMES[LABELS[number]]}/{number}"] = np.void(jpeg(number))
    with h5py.File(out / "features.h5", "w") as file:
        file["features"] = np.zeros((COUNT, 4), np.float32)


def datasets():
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

    cells = [{"bytes": jpeg(number), "path": None} for number in range(COUNT)]
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES), "caption": Value("string")})
    columns = {"image": cells, "label": LABELS, "caption": [f"photo {number}" for number in range(COUNT)]}
    whole = Dataset.from_dict(columns, features=features)
    splits = DatasetDict(train=whole, test=whole.select([3, 1]))
    splits.save_to_disk(folder("datasets", "saved"), num_shards={"train": 2, "test": 1})
    views = Dataset.from_dict(
        {"views": [cells[number : number + 1 + number % 2] for number in range(COUNT - 1)], "label": LABELS[:-1]},
        features=Features({"views": List(Image()), "label": ClassLabel(names=NAMES)}),
    )
    views.to_parquet(HERE / "datasets" / "views.parquet")


def datasets_4():
    from datasets import ClassLabel, Dataset, Features, Image, List

    cells = [{"bytes": jpeg(number), "path": None} for number in range(COUNT)]
    views = Dataset.from_dict(
        {"views": [cells[number : number + 1 + number % 2] for number in range(COUNT - 1)], "label": LABELS[:-1]},
        features=Features({"views": List(Image()), "label": ClassLabel(names=NAMES)}),
    )
    views.save_to_disk(folder("datasets_4", "saved"))
    views.to_parquet(HERE / "datasets_4" / "views.parquet")


def lance():
    import pyarrow
    from lance import write_dataset

    images = pyarrow.array([jpeg(number) for number in range(COUNT)], pyarrow.large_binary())
    names = [NAMES[label] for label in LABELS]
    table = pyarrow.table({"image": images, "label": names, "caption": [f"photo {number}" for number in range(COUNT)]})
    write_dataset(table, folder("lance", "pets.lance"), max_rows_per_file=4)


def tfds():
    import tensorflow_datasets
    from tensorflow_datasets import features

    class Pets(tensorflow_datasets.core.GeneratorBasedBuilder):
        VERSION = tensorflow_datasets.core.Version("1.0.0")
        BUILDER_CONFIGS = [tensorflow_datasets.core.BuilderConfig(name=name) for name in ("jpeg", "png")]  # noqa: RUF012
        pkg_dir_path = HERE

        def _info(self):
            image = features.Image(shape=(None, None, 3), encoding_format=self.builder_config.name)
            columns = {"image": image, "label": features.ClassLabel(names=NAMES), "file_name": features.Text()}
            columns["areas"] = features.Sequence(np.float32)
            return tensorflow_datasets.core.DatasetInfo(builder=self, features=features.FeaturesDict(columns))

        def _split_generators(self, _):
            return {"train": self._generate_examples(range(COUNT)), "test": self._generate_examples([3, 1])}

        def _generate_examples(self, numbers):
            for number in numbers:
                path = str(HERE / "images" / f"{number}.jpg")
                image = path if self.builder_config.name == "jpeg" else np.asarray(picture(number))
                row = {"image": image, "label": LABELS[number], "file_name": f"{number}.jpg"}
                yield number, row | {"areas": [1.0] * (number % 3)}

    out = folder("tfds")
    for name in ("jpeg", "png"):
        Pets(config=name, data_dir=out, file_format="tfrecord").download_and_prepare()


def img2dataset():
    from http.server import HTTPServer, SimpleHTTPRequestHandler
    from threading import Thread

    from img2dataset import download

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=HERE / "images")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Quiet)
    Thread(target=server.serve_forever, daemon=True).start()
    urls = HERE / "urls.txt"
    names = [f"{number}.jpg" for number in range(COUNT)] + ["missing.jpg"]
    urls.write_text("\n".join(f"http://127.0.0.1:{server.server_port}/{name}" for name in names) + "\n")
    for kind in ("files", "webdataset", "parquet"):
        download(
            url_list=str(urls), output_folder=str(folder("img2dataset", kind)), output_format=kind, processes_count=1,
            thread_count=1, resize_mode="no", number_sample_per_shard=4, retries=0,
        )  # fmt: skip
    urls.unlink()


if __name__ == "__main__":
    for name in sys.argv[1:]:
        globals()[name]()
