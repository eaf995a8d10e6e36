"""perf.distilling at toy size: a few digits, and a network that was not trained as the teacher."""

import json

import pytest
import torch
from omegaconf import OmegaConf

from config.recipe import load_config
from perf import distilling, going_on
from support.exports import make_run


@pytest.mark.slow
def test_both_students_take_the_same_steps_and_a_second_call_repeats_no_run(tmp_path, capsys):
    going_on.write_digits(tmp_path / "digits")
    for path in (tmp_path / "digits").glob("*/*/*.png"):
        if int(path.stem) >= 300:
            path.unlink()
    options = OmegaConf.to_container(load_config(["config/demo.yaml"]).model.options)
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        teacher, _ = make_run(tmp_path / "teacher", "resnet", options, 20)
    finally:
        torch.distributed.destroy_process_group()
    words = ["--epochs", "1", "--seeds", "3", "--teacher", str(teacher), "--images", str(tmp_path / "digits")]
    arguments = [*words, "--work", str(tmp_path), "--json", str(tmp_path / "out.json")]
    assert distilling.main(arguments) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["way"], row["seed"]) for row in rows] == [("distilled", 3), ("alone", 3)]
    assert rows[0]["steps"] == rows[1]["steps"] > 0 and all(0 < row["knn"] <= 1 for row in rows)
    assert "of 1 seeds" in capsys.readouterr().out
    assert distilling.main(arguments) == 0
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == rows


def test_a_teacher_without_images_is_a_mistake(tmp_path, capsys):
    assert distilling.main(["--teacher", str(tmp_path), "--work", str(tmp_path)]) == 2
    assert "--teacher needs --images" in capsys.readouterr().err
