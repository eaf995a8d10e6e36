"""The layouts in which people keep splits: folders and files by name, and what is too unclear to be guessed."""

import pytest

from pipeline.conversion.sources import open_source
from pipeline.dataset.finding.layout import Split, find_split, split_of, splits_of_files, unused
from support.small_datasets import PNG, error_of, write

NAMES = {
    "train": ("train", ""), "training": ("training", ""), "Training": ("training", ""), "TRAIN": ("train", ""),
    "val": ("val", ""), "valid": ("valid", ""), "validation": ("validation", ""), "dev": ("dev", ""),
    "test": ("test", ""), "Testing": ("testing", ""), "eval": ("eval", ""), "evaluation": ("evaluation", ""),
    "train2017": ("train", ""), "val2017": ("val", ""), "train_val": ("trainval", ""), "trainval": ("trainval", ""),
    "digits-train": ("train", "digits"), "digits-test": ("test", "digits"), "train_digits": ("train", "digits"),
    "DigitsTrain": ("train", "digits"), "seg_train": ("train", "seg"), "trainA": ("train", "a"),
    "train-0.tar": ("train", ""), "train-000123.tar": ("train", ""), "val000.tar": ("val", ""),
    "imagenet1k-train-0004.tar": ("train", "imagenet-k"), "imagenet1k-validation-04.tar": ("validation", "imagenet-k"),
    "train_0.parquet": ("train", ""), "set-test.parquet": ("test", "set"), "x.train.tar.gz": ("train", "x"),
    "train-00000-of-00042.parquet": ("train", ""), "digits-validation-00000-of-00001.arrow": ("validation", "digits"),
    "train.beton": ("train", ""), "my-train.beton": ("train", "my"),
    "trainset": ("train", ""), "testdata": ("test", ""), "ValImages-0.tar": ("val", "images"),
    "holdout": ("holdout", ""), "held-out-0.tar": ("holdout", ""), "HeldOut": ("holdout", ""),
    "minival2014": ("val", ""), "minitrain": ("train", ""),
    "unlabeled2017": ("unlabeled", ""), "pretrain": ("pretrain", ""),
    "pretraindata-0.tar": ("pretrain", ""),
    "imagesTr": ("train", "images"), "imagesVa": ("val", "images"), "imagesTs": ("test", "images"),
    "images_te": ("test", "images"), "IMG_TR": ("train", "img"), "images-tr-0.tar": ("train", "images"),
    "labelsTr": ("", "labels-tr"), "tr": ("", "tr"), "font_te": ("", "font-te"), "ts": ("", "ts"),
    "trainer": ("", "trainer"), "trains": ("", "trains"), "validated": ("", "validated"), "device": ("", "device"),
    "contest-0.tar": ("", "contest"), "latest.tar": ("", "latest"), "train-test-0.tar": ("", ""), "cat": ("", "cat"),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_says_its_split(name):
    assert split_of(name) == Split(*NAMES[name])


PAIRS = {
    "train/ val/": ("train", "val"), "train/ valid/": ("train", "valid"), "train/ dev/": ("train", "dev"),
    "Training/ Testing/": ("Training", "Testing"), "train/ eval/": ("train", "eval"),
    "training/ validation/ test/": ("training", "test"), "train/ test/ val/": ("train", "val"),
    "train2017/ val2017/ annotations/": ("train2017", "val2017"), "digits-train/ digits-test/": ("digits-train",
    "digits-test"), "train/": ("train", None), "train/ notes.txt": ("train", None), "train/ __MACOSX/": ("train", None),
    "train.beton": ("train.beton", None), "train.beton val.beton": ("train.beton", "val.beton"),
    "my-train.beton my-test.beton": ("my-train.beton", "my-test.beton"), "train.tar val.tar": ("train.tar", "val.tar"),
    "train-0.tar train-1.tar val-0.tar": ("train*.tar", "val-0.tar"),
    "x-train-0.tar x-train-1.tar x-test-0.tar x-test-1.tar README.md": ("x-train*.tar", "x-test*.tar"),
    "a[1]-train-0.tar a[1]-train-1.tar a[1]-dev-0.tar": ("a[1]-train*.tar", "a[1]-dev-0.tar"),
    "traindata/ testdata/": ("traindata", "testdata"), "unlabeled/ test/": ("unlabeled", "test"),
    "train/ test/ unlabeled/": ("train", "test"), "pretrain/ val/ test/": ("pretrain", "val"),
    "unlabeled-0.tar unlabeled-1.tar test-0.tar": ("unlabeled*.tar", "test-0.tar"),
    "images_tr/ images_te/": ("images_tr", "images_te"), "images_tr/ images_va/ images_te/": ("images_tr", "images_va"),
    "imagesTr/ imagesTs/ labelsTr/ labelsTs/ dataset.json": ("imagesTr", "imagesTs"),
    "imagesTr/ imagesVal/ labelsTr/ labelsVal/": ("imagesTr", "imagesVal"), "img_tr/ img_te/": ("img_tr", "img_te"),
    "train-0.tar held-out-0.tar held-out-1.tar": ("train-0.tar", "held-out*.tar"),
    "digits-train-0.tar digits-test-0.tar digits-test-1.tar": ("digits-train-0.tar", "digits-test*.tar"),
    "images_tr-0.tar images_tr-1.tar images_te-0.tar": ("images_tr*.tar", "images_te-0.tar"),
    "en/ de/ te/ tr/": ("", None), "font_tr/ font_te/": ("", None), "imagesTr/ labelsTr/": ("", None),
    "unlabeled/ cat/": ("", None), "cat/ dog/": ("", None), "train/ car/": ("", None),
    "test-tube/ red-train/": ("", None), "val/ cat/": ("", None),
    "red-train/ blue-train/": ("", None), "0.tar 1.tar": ("", None), "train-0.tar train-1.tar": ("", None),
    "val-0.tar val-1.tar": ("", None), "cat.beton": ("", None),
}  # fmt: skip
UNCLEAR = [
    "val/ test/", "train/ training/", "train2014/ train2017/ val2014/", "a-train/ a-test/ b-train/ b-test/",
    "val-0.tar test-0.tar", "shard-0.tar test-0.tar", "a-train-0.tar b-test-0.tar", "trainA/ trainB/ testA/ testB/",
    "train/ public_test/ private_test/",
]  # fmt: skip


def laid_out(root, entries):
    for entry in entries.split():
        write(root, {f"{entry}x.png" if entry[-1] == "/" else entry: PNG})
    return root


@pytest.mark.parametrize("entries", PAIRS)
def test_a_layout_is_a_pair_of_splits_or_none(tmp_path, entries):
    train, test = PAIRS[entries]
    root = laid_out(tmp_path / "data", entries)
    assert find_split(root) == (root / train, None if test is None else root / test)


@pytest.mark.parametrize(
    ("entries", "names"),
    [
        ("train/ val/ test/ extra/ x.tar", ["extra/", "test/"]), ("train/ x.txt", []), ("cat/ dog/", []),
        ("train-0.tar train-1.tar val-0.tar test-0.tar", ["test-0.tar"]), ("train.beton val.beton", []),
    ],
)  # fmt: skip
def test_what_is_in_neither_split_is_named(tmp_path, entries, names):
    root = laid_out(tmp_path / "data", entries)
    assert unused(root, *find_split(root)) == names


@pytest.mark.parametrize("entries", UNCLEAR)
def test_a_layout_that_leaves_open_what_to_train_on_is_refused(tmp_path, entries):
    line = error_of(find_split, laid_out(tmp_path / "data", entries))
    assert "holds several splits (" in line
    assert "data.path=" in line


def test_the_example_in_a_refusal_is_there(tmp_path):
    root = laid_out(tmp_path / "data", "c_test_x.h5 c_test_y.h5 c_train_x.h5 c_train_y.h5")
    assert error_of(find_split, root).endswith(f"or name them, e.g. data.path='{root / 'c_train_x.h5'}'")
    root = laid_out(tmp_path / "more", "a-train-0.tar a-train-1.tar b-test-0.tar")
    assert error_of(find_split, root).endswith(f"or name them, e.g. data.path='{root / 'a-train*.tar'}'")


def test_conversion_takes_no_two_splits_together(tmp_path):
    for number, entries in enumerate(("train/ valid/", "train-0.tar val-0.tar", "digits-train/ digits-test/")):
        root = laid_out(tmp_path / str(number), entries)
        line = error_of(open_source, root, tmp_path / "spool", progress=False)
        assert "holds several splits" in line
        assert f"SRC='{root / entries.split()[0].rstrip('/')}'" in line


@pytest.mark.parametrize(
    ("names", "count"),
    [
        ("train_0.parquet test_0.parquet", 2), ("x-train.parquet x-test.parquet", 2), ("train.parquet", 1),
        ("train-00000-of-00002.parquet train-00001-of-00002.parquet", 1), ("a.parquet test-0.parquet", 2),
        ("train-0.parquet extra.parquet", 1), ("a/0.arrow b/0.arrow", 2), ("test-0.parquet test-1.parquet", 1),
    ],
)  # fmt: skip
def test_files_of_several_splits_are_told_apart(tmp_path, names, count):
    assert len(splits_of_files([tmp_path / name for name in names.split()])) == count
