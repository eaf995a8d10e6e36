"""perf.step on a tiny network and two ranks: figures exist and add up, who is slow is named, mistakes are refused."""

import json
import time
from functools import partial

import numpy as np
import pytest

from config.recipe import ROOT, load_config
from perf.ranks import run_ranks
from perf.step.__main__ import RECIPE, variant
from perf.step.ranks import Case, turns_in
from perf.step.roofline import Ceilings, Work, roofline
from support.forks import run_forked
from support.photos import write_folder
from support.programs import run_module
from support.tiny_runs import losses, make_workplace, train
from training.profiling.bottleneck import verdict
from training.profiling.profile import summary
from training.profiling.timeline import PHASES
from training.profiling.trace import trace

KINDS = {"gradients", "batch_norm", "codes", "weights", "other"}
TINY = (
    "run.batch_size=8 crops.global.size=16 crops.local.count=2 crops.local.size=8 model.backbone=resnet "
    "model.options.block=basic model.options.layers=[1,1] model.options.base_width=8 model.options.stem=small "
    "model.hidden_dim=16 model.embedding_dim=8 model.prototypes=12 swav.queue.length=16 pipeline.backend=dali"
).split()
SETTINGS = {
    "device": "cuda",
    "ranks": 8,
    "local_ranks": 8,
    "cores": 128,
    "threads": 8,
    "backend": "dali",
    "batch": 1024,
    "stage": 1,
    "precision": "bf16",
    "compile": False,
    "accumulation": 1,
    "sync_batch_norm": 8,
    "prototypes": 3000,
}


step = partial(run_forked, "perf.step")


def noise():
    """64 images."""
    generator = np.random.default_rng(1)
    return [generator.integers(0, 255, (20, 20, 3)).astype(np.uint8) for _ in range(64)]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images") / "train", noise())


@pytest.fixture(scope="module")
def report(images, tmp_path_factory):
    """Two ranks, batch norm synchronized, with the peer, a trace, and little time for variants."""
    folder = tmp_path_factory.mktemp("step")
    files = "--json", folder / "step.json", "--trace", folder / "trace.json"
    cache = f"data.cache={folder / 'tables'}"
    done = step("--budget", 4, "--data", images, "--peer", *files, "--ranks", 2, cache, *TINY,
                "engine.sync_batch_norm=0", "engine.stage=1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "step.json").read_text()), json.loads((folder / "trace.json").read_text())


# ---------------------------------------------------------------------------------------------- a real run
SLOW = pytest.mark.slow  # by the run that these tests share


@SLOW
def test_all_phases_are_there_and_their_shares_add_up(report):
    found, _ = report
    assert tuple(found["shares"]) == PHASES
    assert sum(found["shares"].values()) == pytest.approx(1)
    for name in ("forward_global", "forward_local", "codes", "loss", "backward", "optimizer", "gradient_communication"):
        assert found["shares"][name] > 0, name
    assert found["shares"]["teacher"] == found["shares"]["probe"] == 0
    assert all(times["min"] <= times["median"] <= times["max"] for times in found["phases_ms"].values())


@SLOW
def test_a_rank_s_phases_add_up_to_its_step(report):
    found, _ = report
    assert [row["rank"] for row in found["per_rank"]] == [0, 1]
    for row in found["per_rank"]:
        assert sum(row["phases_ms"].values()) == pytest.approx(row["step_ms"], abs=0.01)
        assert row["own_ms"] + row["communication_ms"] == pytest.approx(row["step_ms"], abs=0.01)
    assert found["slowest_rank"] in (0, 1)


@SLOW
def test_collectives_of_a_step_are_three_for_the_codes_and_two_for_each_batch_norm(report):
    found, _ = report
    kinds = {row["kind"]: row for row in found["collectives"]}
    assert set(kinds) <= KINDS
    assert found["codes_collectives"] == 3
    assert kinds["codes"]["bytes"] == 3 * 2 * 12 * 4  # two crops, twelve prototypes, float32
    # of the backbone two for each resolution, of the head two: an all-gather forward, an all-reduce backward
    norms = 6  # stem, two blocks of two, one shortcut
    assert kinds["batch_norm"]["count"] == 2 * (2 * norms + 1)
    assert kinds["gradients"]["bytes"] > 0


@SLOW
def test_the_report_has_what_others_read(report):
    found, _ = report
    assert found["images_per_second"] == pytest.approx(8e3 / found["step_ms"])
    assert (found["ranks"], found["device"]) == (2, "cpu")
    assert found["peer_ratio"] > 0 and len(found["peer"]["rounds"]) >= 3
    assert found["codes_share"] == found["shares"]["codes"]
    line = found["roofline"]
    assert line["bound"] in ("memory bandwidth", "matrix products")
    assert line["mfu"] == pytest.approx(line["flops_per_second"] / line["peak_flops"])
    assert line["share_of_roofline"] >= line["mfu"] > 0
    assert line["peak_of"].startswith(("square matrices", "Conv2d", "Linear")) and line["peak_noise"] >= 0
    assert found["peak_gb"] > 0 and found["verdict"] and found["machine"]["versions"]["torch"]
    assert -0.9 < found["overhead"] < 9  # it is there; how small, a benchmark tells


@SLOW
def test_the_trace_has_phases_and_collectives_of_each_rank(report):
    found, events = report
    assert found["trace"].endswith("trace.json")
    for rank in (0, 1):
        own = [event for event in events["traceEvents"] if event["pid"] == rank and event["ph"] == "X"]
        assert {event["name"] for event in own if event["tid"] == 0} == set(PHASES) - {"teacher", "probe"}
        assert {event["name"].split(":")[0] for event in own if event["tid"] == 1} >= {"codes", "gradients"}
        assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in own)


@SLOW
def test_variants_are_measured_or_say_why_not(report):
    rows = report[0]["variants"]
    assert rows[0]["stage"] == 1 and rows[0]["images_per_second"] > 0
    assert all(row["skipped"] or row["images_per_second"] > 0 for row in rows)
    assert {row["stage"] for row in rows} == {0, 1, 2, 3}
    assert [row["skipped"] for row in rows if row["precision"] == "fp16"] != [None]


@SLOW
def test_a_variant_has_a_rate_if_there_is_time_and_a_gpu_for_it(images):
    arguments = (str(RECIPE), *TINY, f"data.path={images}", "engine.stage=1")
    case = Case(arguments, ranks=1, images=64, seconds=1.0)
    (row,) = variant(case, load_config(list(arguments)), {"stage": 2}, left=4.0, start=2.0)
    assert row["stage"] == 2 and row["skipped"] is None and row["images_per_second"] > 0
    for changes, left, reason in (
        ({"stage": 2}, 2.0, "no time was left of --budget"),
        ({"precision": "fp16"}, 4.0, "engine.precision=fp16 needs a GPU"),
    ):
        (row,) = variant(case, load_config(list(arguments)), changes, left, start=2.0)
        assert row["skipped"] == reason and not row["images_per_second"]


# ---------------------------------------------------------------------------------------------- what the recipe says
VIT = (
    "run.batch_size=8 crops.global.size=32 crops.local.count=2 crops.local.size=16 model.hidden_dim=16 "
    "model.options={embed_dim:24,depth:1,num_heads:2,patch_size:8} model.embedding_dim=8 model.prototypes=12 "
    "pipeline.backend=torchvision"
).split()


def measured(out, *arguments):
    """The report of one rank, without variants."""
    done = step("--budget", 4, "--ranks", 1, "--no-variants", "--json", out, *arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert [row["skipped"] for row in found["variants"]] == [None]
    return found, " ".join(done.stdout.split())


@pytest.mark.slow
def test_a_vision_transformer_s_step_has_its_teacher_and_its_probe_labels_drawn_at_random(tmp_path):
    recipe = "--config", ROOT / "config" / "imagenet" / "vit_s16.yaml", "--data", write_flat(tmp_path / "flat")
    settings = f"data.cache={tmp_path}", *VIT, "evaluation.probe=true"
    found, said = measured(tmp_path / "step.json", *recipe, "--peer", *settings)
    assert found["settings"]["teacher"] == 0.996 and "a teacher" in said
    assert found["settings"]["probe_labels"] == "drawn at random" and "drawn at random" in said
    assert found["shares"]["teacher"] > 0.02 and found["shares"]["probe"] > 0
    assert found["shares"]["codes"] < found["shares"]["teacher"]  # its forward pass does not count as codes
    assert found["images_per_second"] > 0 and found["codes_collectives"] == 3
    assert found["peer_ratio"] is None
    assert found["peer_left_out"] == "swav.teacher.momentum=0.996, evaluation.probe=true"


@pytest.mark.slow
def test_deepcluster_has_its_three_heads_and_the_probe_its_images_labels(images, tmp_path):
    settings = "method=deepclusterv2", "evaluation.probe=true", "engine.accumulation=2", "swav.queue.length=0"
    found, said = measured(tmp_path / "step.json", "--data", images, f"data.cache={tmp_path}", *TINY, *settings)
    expected = {"method": "deepclusterv2", "heads": 3, "queue": 0, "probe": True, "probe_labels": "images"}
    assert {key: found["settings"][key] for key in expected} == expected
    assert found["shares"]["probe"] > 0 and found["shares"]["teacher"] == 0
    assert found["codes_collectives"] == 0 and found["images_per_second"] > 0  # the clusters are there: no Sinkhorn
    assert "method=deepclusterv2; 3 heads of 12 prototypes; the online probe" in said
    assert "drawn at random" not in said


def write_flat(root):
    """Images without labels: all in one folder."""
    root.mkdir()
    for path in write_folder(root.parent / "classes", noise(), classes=1).glob("*/*.png"):
        path.rename(root / path.name)
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("swav.hard=true", "model.heads=2", "swav.teacher.momentum=0.9", "evaluation.probe=true"),
        ("engine.accumulation=2", "swav.assigning=[1,0]"),
    ],
)
def test_the_measured_step_is_train_py_s(tmp_path, settings):
    """Its first loss, on the same images: network, codes and loss are the same."""
    settings = *settings, "swav.queue.length=0", "pipeline.backend=torchvision", "run.epochs=1"
    make_workplace(tmp_path)
    train(tmp_path, "run", *settings)
    run_ranks(first_loss, 1, str(tmp_path), *settings)
    (loss,) = json.loads((tmp_path / "loss.json").read_text())
    assert losses(tmp_path, "run")[1] == loss


def first_loss(rank, folder, *settings):
    """As the only rank: the loss of the first of perf.step's steps, into FOLDER/loss.json."""
    from pathlib import Path

    from config.recipe import load_config
    from perf.step.steps import Steps
    from pipeline.dataset.open import open_splits
    from training.auto import fit
    from training.distributed import Cluster, connected

    config, cluster = load_config([f"{folder}/tiny.yaml", *settings]), Cluster()
    table, _ = open_splits(config.data, progress=False)
    fit(config, len(table.usable()), cluster)
    with connected(cluster):
        steps = Steps(config, cluster, len(table.usable()), table, classes=2)
        loss = float(steps.step(steps.batches()))
        steps.loader.close()
    (Path(folder) / "loss.json").write_text(json.dumps([loss]))


# ---------------------------------------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--ranks", "-1"], "--ranks=-1: expected at least 1"),
        (["--budget", "1"], "--budget=1: expected 2 to 86400 seconds"),
        (["--json", "/nowhere/x.json"], "--json=/nowhere/x.json: there is no folder /nowhere"),
        (["--trace", "/nowhere/x.json"], "--trace=/nowhere/x.json: there is no folder /nowhere"),
        (["--config", "nothing.yaml"], "nothing.yaml: no such recipe"),
        (["my.yaml"], "my.yaml: expected key=value, or --config=my.yaml for a recipe"),
        (["engine.stagee=1"], "unknown key engine.stagee; the nearest is engine.stage"),
        (["--data", "/nowhere"], "data.path=/nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(arguments, told):
    done = run_module("perf.step", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("swave: ") and done.stderr.count("\n") == 1
    assert told in done.stderr


# ---------------------------------------------------------------------------------------------- pure parts
def rank_of(number, steps, collectives=()):
    """A rank whose steps take these milliseconds a phase."""
    spans = [[(name, 10.0 * index, length) for name, length in step.items()] for index, step in enumerate(steps)]
    return {"rank": number, "host": f"host{number}", "spans": spans, "collectives": list(collectives)}


def test_a_slow_rank_is_named_although_all_steps_are_equally_long():
    """The fast rank waits in its collectives for as long as the slow one works."""
    slow = rank_of(1, [{"data_wait": 60.0, "backward": 40.0}], [("gradients", "all_reduce", 8, 0.0, 1.0)])
    fast = rank_of(0, [{"data_wait": 0.0, "backward": 100.0}], [("gradients", "all_reduce", 8, 0.0, 61.0)])
    found = summary([fast, slow])
    assert found["step_ms"] == 100.0
    assert found["slowest_rank"] == 1
    assert found["slow"] == {"rank": 1, "host": "host1", "own_ms": 99.0, "others_ms": 39.0, "phase": "data_wait"}
    assert "rank 1 on host1" in verdict(found, SETTINGS)


def test_equal_ranks_are_not_called_slow():
    found = summary([rank_of(number, [{"backward": 10.0 + number / 10}]) for number in range(4)])
    assert found["slowest_rank"] == 3
    assert found["slow"] is None


def test_a_trace_is_in_microseconds():
    events = trace([rank_of(2, [{"codes": 1.5}])])["traceEvents"]
    assert [(e["name"], e["dur"], e["pid"]) for e in events if e["ph"] == "X"] == [("codes", 1500.0, 2)]


def found_with(step_ms=100.0, collectives=(), **shares):
    rest = 1 - sum(shares.values())
    whole = dict.fromkeys(PHASES, 0.0) | {"backward": rest} | shares
    return {"shares": whole, "slow": None, "step_ms": step_ms, "collectives": list(collectives)}


@pytest.mark.parametrize(
    ("found", "changes", "told"),
    [
        (found_with(data_wait=0.38), {}, "loader-bound: the GPU waits 38% of each step; pipeline.threads=13 or "
         "pipeline.backend=ffcv would hide it"),
        (found_with(data_wait=0.38), {"backend": "ffcv"}, "pipeline.threads=13 would hide it"),
        (found_with(data_wait=0.6), {"cores": 80, "backend": "ffcv"}, "pipeline.threads=10 would hide some of it"),
        (found_with(data_wait=0.6), {"cores": 64, "backend": "ffcv"}, "all cores are busy"),
        (found_with(gradient_communication=0.3), {"stage": 0}, "engine.stage=1 hides it"),
        (found_with(gradient_communication=0.3), {"stage": 3}, "engine.stage=1 gathers no weights"),
        (found_with(gradient_communication=0.3), {}, "run.batch_size=2048 with engine.accumulation=2 halves it"),
        (found_with(codes=0.1), {}, "bound by the codes: 10%"),
        (found_with(optimizer=0.2), {}, "bound by the optimizer: 20%"),
        (found_with(collectives=[{"kind": "batch_norm", "ms": 30.0}]), {}, "a smaller engine.sync_batch_norm than 8"),
        (found_with(), {}, "bound by the network: forward and backward are 100%"),
    ],
)  # fmt: skip
def test_the_verdict_names_what_bounds_and_what_would_help(found, changes, told):
    said = verdict(found, SETTINGS | changes)
    assert told in said
    assert "\n" not in said


def test_the_verdict_names_the_lower_ceiling():
    line = roofline(500.0, Work(1e6, 1e9), 2, Ceilings(bandwidth=44e9, peak_flops=1e15))
    assert line["bound"] == "memory bandwidth"
    assert line["share_of_roofline"] == pytest.approx(0.5)  # 1,000 images a second at 44 MB an image
    assert line["mfu"] == pytest.approx(0.003)
    assert "engine.precision=bf16" in verdict(found_with(), SETTINGS | {"precision": "fp32"}, line)
    assert "engine.compile=true" in verdict(found_with(), SETTINGS, line)


def test_turns_fill_their_time():
    assert turns_in(40.0, 1.0, 2, False) == (1, 19)
    assert turns_in(1.0, 1.0, 2, False) == (1, 3)  # three rounds at least
    assert turns_in(10.0, 0.01, 2, True) == (50, 9)
    assert turns_in(1.0, 0.01, 2, False) == (12, 3)  # turns of an eighth of the second, not of a whole one


# ---------------------------------------------------------------------------------------------- artificial slowness
def slow_loader(rank, folder, slow_rank):
    """As a rank of perf.step whose loader, on one rank or on all (-1), hands each batch over late."""
    from pathlib import Path

    from perf.step import ceilings
    from perf.step import ranks as step_ranks
    from pipeline.loader import Loader
    from training.distributed import Cluster, connected

    ceilings.RUNS = 1  # nothing here is about them
    take = Loader._take

    def late(self, epoch):
        if slow_rank in (rank, -1):
            time.sleep(0.1)
        return take(self, epoch)

    Loader._take = late
    folder = Path(folder)
    arguments = (str(ROOT / "config" / "folder.yaml"), f"data.path={folder / 'train'}", *TINY)
    case = step_ranks.Case(arguments, 2, 64, 1.0, folder / "table.npz")
    cluster = Cluster(rank, 2, rank, 2)
    with connected(cluster):
        found = step_ranks.measure(case, cluster)
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


@pytest.mark.slow
@pytest.mark.parametrize("slow_rank", [-1, 1])
def test_a_slow_loader_is_the_verdict_on_all_ranks_and_on_one(images, tmp_path, slow_rank):
    from pipeline.dataset.open import open_dataset

    table = open_dataset(images, tmp_path / "tables", progress=False)
    table.save(tmp_path / "table.npz", digests={name: "" for name in table.containers})
    run_ranks(slow_loader, 2, str(tmp_path), slow_rank)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    found = summary([rank["profile"] for rank in ranks])
    said = verdict(found, ranks[0]["settings"])
    if slow_rank == 1:
        assert found["slowest_rank"] == 1
        assert found["slow"]["phase"] == "data_wait"
        assert said.startswith("bound by a slow rank: rank 1")
    else:
        assert said.startswith("loader-bound: the network waits")
