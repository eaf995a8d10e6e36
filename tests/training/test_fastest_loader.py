"""`pipeline.backend=auto`: which loaders are timed, which is taken, what is kept."""

import json

import pytest
from omegaconf import OmegaConf

from config.recipe import load_config
from support.tiny_runs import losses, make_workplace, train
from training import fastest_loader
from training.auto import fit
from training.build import build_loader
from training.distributed import Cluster
from training.fastest_loader import choices_of, take_fastest


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return make_workplace(tmp_path_factory.mktemp("fastest"))


def names(choices):
    return [choice["pipeline.backend"] for choice in choices]


@pytest.mark.parametrize(
    ("settings", "begun_with", "expected"),
    [
        ([], None, ["ffcv", "dali"]),
        (["crops.jitter.exact=true"], None, ["ffcv"]),  # dali cannot
        (["pipeline.backend=torchvision"], None, []),
        ([], {"pipeline": {"backend": "dali"}}, []),  # a resumed run
        ([], {"pipeline": {"backend": "auto"}}, ["ffcv", "dali"]),  # killed before it had begun
    ],
)
def test_what_a_recipe_leaves_open_is_timed(settings, begun_with, expected):
    config = load_config(["config/demo.yaml", "pipeline.backend=auto", *settings])
    assert names(choices_of(config, begun_with, Cluster())) == expected


def test_on_a_gpu_device_and_share_of_the_decoder_are_timed_too():
    class OnGpu(Cluster):
        def device(self):
            import torch

            return torch.device("cuda", 0)

    kinds = [
        (choice["pipeline.backend"], choice["pipeline.device"], choice["pipeline.hw_decoder_load"])
        for choice in choices_of(load_config(["config/demo.yaml", "pipeline.backend=auto"]), None, OnGpu())
    ]
    expected = [("ffcv", "gpu", 0.65), ("ffcv", "cpu", 0.65), ("dali", "gpu", 0.65), ("dali", "gpu", 0.9)]
    assert kinds == [*expected, ("dali", "cpu", 0.65)]
    config = load_config(["config/demo.yaml", "pipeline.device=gpu", "pipeline.hw_decoder_load=0.3"])
    kinds = [
        (choice["pipeline.backend"], choice["pipeline.hw_decoder_load"]) for choice in choices_of(config, None, OnGpu())
    ]
    assert kinds == [("ffcv", 0.3), ("dali", 0.3)]


def test_the_fastest_is_taken_and_one_that_fails_is_named(workplace, monkeypatch):
    monkeypatch.setattr(fastest_loader, "SECONDS", 0.05)
    from pipeline.crops import crops_from_config
    from pipeline.dataset.open import open_splits

    config = load_config([str(workplace / "tiny.yaml"), "pipeline.backend=torchvision", f"run.directory={workplace}/x"])
    table, _ = open_splits(config.data, progress=False)
    fit(config, len(table.usable()), Cluster())
    usual = {"pipeline.device": "cpu", "pipeline.hw_decoder_load": 0.65}
    choices = [
        {"pipeline.backend": "none", "crops.jitter.exact": True, **usual},
        {"pipeline.backend": "dali", "crops.jitter.exact": False, **usual},
    ]
    loader = build_loader(config, table, crops_from_config(config.crops, "torchvision"), Cluster())
    said = []
    take_fastest(choices, config, table, loader, Cluster(), said.append)
    assert (config.pipeline.backend, config.crops.jitter.exact) == ("dali", False)
    assert type(loader.backend).__name__ == "DaliBackend" and loader.crops.jitter.exact is False
    assert "none fails (" in said[0] and "auto: pipeline.backend=dali, crops.jitter.exact=false" in said[0]
    assert loader.position.samples == 0 and next(iter(loader)).crops[0].shape[0] == 2 * config.run.batch_size
    loader.close()
    before = OmegaConf.to_container(config)
    take_fastest(choices[:1], config, table, loader, Cluster(), said.append)
    assert OmegaConf.to_container(config) == before and "none fails (" in said[1]


@pytest.mark.slow
def test_a_run_keeps_what_it_took_and_the_next_asks_nothing(workplace):
    for file in (workplace / "tables").glob("backends/*.json"):
        file.unlink()  # of the test above
    output = train(workplace, "auto", "pipeline.backend=auto", "run.epochs=1")
    (file,) = (workplace / "tables").glob("backends/*.json")
    assert all("rows" in json.loads(table.read_text()) for table in (workplace / "tables").glob("*.json"))
    rates = json.loads(file.read_text())["rates"]
    taken = ["ffcv", "dali"][rates.index(max(rates))]
    assert len(rates) == 2 and min(rates) > 0
    assert f"auto: pipeline.backend={taken}" in output and "timed on these images" in output
    train(workplace, "named", f"pipeline.backend={taken}", "run.epochs=1")
    assert losses(workplace, "auto") == losses(workplace, "named")
    other = "dali" if taken == "ffcv" else "ffcv"
    file.write_text(json.dumps({"rates": rates[::-1]}))  # the resumed run takes no notice, the next one does
    output = train(workplace, "auto", "pipeline.backend=auto", "run.epochs=2")
    assert f"pipeline.backend={taken}  (the run has begun with it)" in output and "timed" not in output
    output = train(workplace, "second", "pipeline.backend=auto", "run.epochs=1")
    assert f"auto: pipeline.backend={other}" in output and "timed before" in output


@pytest.mark.slow
def test_all_ranks_take_what_rank_0_found(workplace):
    output = train(workplace, "ranks", "pipeline.backend=auto", "run.epochs=1", ranks=2)
    assert output.count("auto: pipeline.backend=") == 1
    summary = json.loads((workplace / "ranks" / "summary.json").read_text())
    assert summary["world_size"] == 2 and len(losses(workplace, "ranks")) == 8
