"""perf.backbones on small models of timm and torchvision."""

import json

import pytest

from perf.backbones import __main__ as backbones
from perf.backbones.engine import LIMIT, compare
from perf.backbones.families import smallest_models
from perf.ranks import run_ranks


@pytest.mark.slow
def test_models_are_checked_once_and_the_page_has_them(tmp_path):
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text("# Backbones\n\nWords of a person.\n\n" + backbones.MARK + "old")
    arguments = ["resnet10t", "torchvision:shufflenet_v2_x0_5", "--shapes", "--json", str(results), "--page", str(page)]
    assert backbones.main(arguments) == 0
    report = json.loads(results.read_text())
    assert report["models"]["resnet10t"]["sizes"] == [224, 96] and report["models"]["resnet10t"]["feature_dim"] == 512
    text = page.read_text()
    assert text.startswith("# Backbones\n\nWords of a person.\n") and "old" not in text
    timm = report["libraries"]["timm"]
    assert f"- 1 of the {timm['models']} models of timm {timm['version']}\n" in text
    assert "| `resnet10t` | 4.9 M | 512 | 224, 96 |" in text
    report["models"]["resnet10t"] |= {"feature_dim": 7}
    results.write_text(json.dumps(report))
    assert backbones.main(arguments) == 0  # nothing is missing
    assert json.loads(results.read_text())["models"] == report["models"]


def step_of(_rank, folder):
    """As a rank: what a step with a network of one size is found to be."""
    from perf.backbones.step import take_step
    from training.distributed import Cluster, connected

    with connected(Cluster()):
        (folder / "found.json").write_text(json.dumps(take_step("test_vit_relpos", (64, 32))))


@pytest.mark.slow
def test_a_model_takes_a_step_and_has_the_features_of_timms_own(tmp_path):
    run_ranks(step_of, 1, tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["adapted"] and found["feature_dim"] == 96 and found["difference"] <= 1e-6


def test_a_refused_model_is_counted_and_comes_with_its_reason():
    entry = {"parameters": 5, "family": "eva", "checked": "shapes", "reason": "patches | do not fit"}
    libraries = {"timm": {"version": "1", "models": 9}, "torchvision": {"version": "2", "models": 8}}
    works = {**entry, "checked": "step", "sizes": [256, 128], "feature_dim": 3, "adapted": True, "difference": 2e-7}
    models = {"eva": entry, "torchvision:swin_t": works}
    text = backbones.table({"models": models, "libraries": libraries, "machine": {"date": "2026-11-29"}})
    assert "| timm, up to 60 million parameters | 1 | 0 | 0 | 1 | 0 |" in text
    assert "| torchvision, up to 60 million parameters | 1 | 0 | 1 | 0 | 1 |" in text
    assert "- 1 of the 9 models of timm 1\n- 1 of the 8 models of torchvision 2\n" in text
    assert "| `eva` | patches   do not fit |" in text and "| 256, 128 | yes | 2e-07 | step |" in text


def test_the_smallest_model_of_each_family_comes_first():
    models = {name: {"family": family} for name, family in (("c", "vit"), ("a", "vit"), ("b", "resnet"), ("d", "vit"))}
    sizes = {"c": 2, "a": 1, "b": 5, "d": 9}
    assert backbones.in_turns(sizes, models) == ["a", "b", "c", "d"]


def test_the_smallest_model_of_each_family_that_works_is_taken():
    models = {
        "large": {"parameters": 9, "family": "vit", "sizes": [224, 96]},
        "small": {"parameters": 5, "family": "vit", "sizes": [224, 96]},
        "refused": {"parameters": 1, "family": "vit", "reason": "no"},
        "torchvision:vit_b_16": {"parameters": 2, "family": "vit", "sizes": [224, 96]},
    }
    assert smallest_models(models) == {("torchvision", "vit"): "torchvision:vit_b_16", ("", "vit"): "small"}


@pytest.mark.slow
def test_gradients_are_the_same_with_checkpointing_and_compiled():
    found = compare("test_vit", (64, 32), backend="aot_eager")
    assert found["checkpointing"] == 0 and found["compiled"] < LIMIT
    assert found["recomputed"] > 0.5 and found["graphs"] == 2 and found["breaks"] == 0


def test_a_network_without_checkpointing_says_so_and_a_wrong_gradient_is_seen(monkeypatch):
    def double(network, **_):
        network.register_forward_hook(lambda _module, _images, features: 2 * features)

    monkeypatch.setattr("torch.nn.Module.compile", double)
    found = compare("torchvision:shufflenet_v2_x0_5", (64, 32))
    assert "does not support it" in found["checkpointing"] and "recomputed" not in found
    assert found["compiled"] == pytest.approx(1)


def test_compiled_and_checkpointed_networks_have_their_own_table():
    entry = {"parameters": 5, "family": "vit", "sizes": [224, 96]}
    same = {"checkpointing": 0.0, "recomputed": 0.5, "compiled": 2e-6, "graphs": 2, "breaks": 0}
    refused = {"checkpointing": "no | such", "compiled": 2e-2, "graphs": 3, "breaks": 1}
    models = {"a": entry | {"engine": same}, "b": entry | {"family": "eva", "engine": refused}}
    text = "\n".join(backbones.engines(models))
    assert "1 of 2 families with activation checkpointing and for 1 compiled" in text
    assert "| eva | `b` | no   such |  | 2e-02 | 3 | 1 |\n| vit | `a` | 0 | 50% | 2e-06 | 2 | 0 |" in text
    assert backbones.engines({"a": entry}) == []


def test_a_pattern_without_models_is_one_line(capsys, tmp_path):
    page = ["--json", str(tmp_path / "a.json"), "--page", str(tmp_path / "a.md")]
    assert backbones.main(["nothing_*", *page]) == 2
    assert "is called nothing_*" in capsys.readouterr().err
