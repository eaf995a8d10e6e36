"""The benchmark of camera photographs, at toy size."""

import argparse
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from config.recipe import ROOT
from perf.images import photographs
from perf.photographs.__main__ import BASE, HERE, PEER, run
from perf.photographs.images import KINDS, photograph
from support.programs import run_module

SMALL = {name: replace(kind, width=400, height=300) for name, kind in KINDS.items()}


@pytest.mark.parametrize("name", SMALL)
def test_a_photograph_is_what_its_kind_says(name):
    kind = SMALL[name]
    data = photograph(photographs(), 3, kind)
    assert data == photograph(photographs(), 3, kind)
    image = Image.open(io.BytesIO(data))
    assert image.size == (400, 300)
    assert image.getexif().get(0x0112, 1) == (6 if "EXIF" in name else 1)
    assert bool(image.info.get("progressive")) == ("progressive" in name)
    assert image.layer[0][1:3] == ((1, 1) if "4:4:4" in name else (2, 2))
    pixels = np.asarray(image).astype(float)
    assert 1 < np.abs(np.diff(pixels, axis=1)).mean() < 20  # noise, and an image


@pytest.mark.slow(seconds=40)
def test_contenders_take_turns_and_ratios_are_of_this_checkout(tmp_path):
    kinds = {"12 MP": replace(KINDS["12 MP"], width=1600, height=1200)}
    options = argparse.Namespace(base=ROOT, rounds=2, seconds=0.05, threads=1, kinds="12 MP", no_peer=False, json=None)
    report = run(options, kinds, tmp_path)
    result = report["kinds"]["12 MP"]
    assert set(result["contenders"]) == {HERE, BASE, PEER} == {HERE, *result["ratios"]}
    for name, own in result["contenders"].items():
        assert own["cpu_ms"] > 0 and own["images_per_second"] > 0
        assert ("mb_a_thread" in own) == (name != PEER)
    assert result["ratios"][PEER]["cpu"] > 2  # swave decodes at 1/2 or less, once for all crops


def test_a_mistake_is_one_line_and_code_2():
    process = run_module("perf.photographs", "--kinds", "13 MP")
    assert process.returncode == 2
    assert process.stderr.startswith("swave: --kinds=13 MP: unknown kind '13 MP'; take some of 12 MP;")
