"""The cost of codes: the arithmetic of the model, the messages sent, a small real run, and mistakes."""

import json

import numpy as np
import pytest
import torch

from config.recipe import ROOT
from perf.sinkhorn.alpha_beta import Link, Timed, fit, hops, moved, seconds_of
from perf.sinkhorn.measure import pooled
from perf.sinkhorn.predict import (
    NODES,
    Network,
    between_nodes,
    compute_by_traffic,
    compute_of,
    given,
    held_out,
    links,
    nodes_at,
    predictions,
)
from perf.sinkhorn.variants import VARIANTS, Message, Point, sent
from support.forks import run_forked
from support.programs import run_module
from support.ranks import run_ranks

SLOW = pytest.mark.slow
TRUE = Link(call=20e-6, latency=0.0, work=150e-6, per_byte=2e-9)


def program(*flags, folder=ROOT):
    """perf.sinkhorn in `folder`."""
    return run_forked("perf.sinkhorn", *flags, folder=folder)


# ---------------------------------------------------------------------------- the model


@pytest.mark.parametrize("latency", [0.0, 2e-3])
def test_the_fit_of_one_and_two_ranks_recovers_their_link(latency):
    true = Link(20e-6, latency, 150e-6, 2e-9)
    sizes = (2_400, 24_000, 240_000)
    timed = [Timed(ranks, size, seconds_of(true, "all_reduce", size, ranks, 2)) for ranks in (1, 2) for size in sizes]
    fitted = fit(timed, latency, cores=2)
    assert [fitted.call, fitted.work, fitted.per_byte] == pytest.approx([20e-6, 150e-6, 2e-9], rel=1e-6)
    for ranks in (3, 4, 64):
        expected = seconds_of(true, "all_reduce", 50_000, ranks, 2)
        assert seconds_of(fitted, "all_reduce", 50_000, ranks, 2) == pytest.approx(expected)


def test_a_fit_has_no_term_below_zero():
    falling = [Timed(1, 100, 1e-5), Timed(2, 1_000, 3e-4), Timed(2, 1_000_000, 2e-4)]
    fitted = fit(falling)
    assert fitted.work > 0 and fitted.per_byte == 0
    steep = [Timed(1, 100, 1e-5), Timed(2, 1_000, 1.01e-5), Timed(2, 1_000_000, 1e-2)]
    assert fit(steep).per_byte > 0 and fit(steep).work >= 0
    with pytest.raises(ValueError, match="two ranks or more"):
        fit([Timed(1, 100, 1e-5)])


def test_a_single_number_has_a_share_of_a_hop_that_more_ranks_keep():
    timed = [Timed(1, 4, 0.0), Timed(2, 2_400, 2.0), Timed(2, 24_000, 2.0), Timed(2, 4, 0.9)]
    fitted = fit(timed, latency=0.5)
    assert fitted.single == pytest.approx(0.45)
    assert seconds_of(fitted, "all_reduce", 4, 4) == pytest.approx(2.7)
    assert seconds_of(fitted, "all_reduce", 2_400, 4) == pytest.approx(6.0)


def test_ring_and_tree_take_the_hops_and_move_the_bytes_of_the_textbook():
    assert [hops("all_reduce", n) for n in (1, 2, 4, 8)] == [0, 2, 6, 14]
    assert [hops("all_reduce", n, "tree") for n in (1, 2, 4, 5, 8)] == [0, 2, 4, 6, 6]
    assert [hops("all_gather", n) for n in (1, 2, 4)] == [0, 1, 3]
    assert [moved("all_reduce", n) for n in (1, 2, 4)] == [0, 1, 1.5]
    assert [moved("all_gather", n) for n in (1, 2, 4)] == [0, 1, 3]


def test_ranks_that_share_cores_wait_for_each_other_but_a_wire_does_not():
    own, shared = (seconds_of(TRUE, "all_reduce", 24_000, 4, cores) for cores in (4, 2))
    assert shared - TRUE.call == pytest.approx(2 * (own - TRUE.call))
    wire = Link(20e-6, 5e-3, 0.0, 0.0)
    assert seconds_of(wire, "all_reduce", 24_000, 4, 2) == seconds_of(wire, "all_reduce", 24_000, 4, 4)


# ---------------------------------------------------------------------------- messages and codes of the variants


def codes_and_messages(task):
    """For each variant the codes, and the group's collectives that a hook in torch.distributed sees."""
    import torch.distributed as dist

    from perf.sinkhorn.ranks import recorded

    scores, iterations = task
    ranks = dist.get_world_size()
    group = dist.new_group(list(range(ranks)))
    alone = [dist.new_group([rank]) for rank in range(ranks)][dist.get_rank()]
    results = {}
    for name, codes in VARIANTS.items():
        with recorded(group, torch.device("cpu")) as calls:
            results[name] = codes(torch.from_numpy(scores), iterations, group, alone).numpy()
        results[f"{name} sends"] = [(kind, size) for kind, size, _ in calls]
    return results


@pytest.mark.parametrize(("ranks", "iterations"), [(1, 3), (2, 3), (4, 2)])
def test_variants_give_the_same_codes_and_send_what_the_model_counts(ranks, iterations):
    random = np.random.RandomState(0)
    scores = [random.uniform(-1, 1, (2, 5, 12)).astype(np.float32) for _ in range(ranks)]
    results = run_ranks([(part, iterations) for part in scores], codes_and_messages)
    for result in results:
        np.testing.assert_allclose(result["published"], result["ours"], rtol=0, atol=2e-6)
        np.testing.assert_allclose(result["gather"], result["ours"], rtol=0, atol=2e-6)
        for name in VARIANTS:
            assert result[f"{name} sends"] == sent(Point(name, 12, 5, iterations)), name
    counts = [len(sent(Point(name, 3000, 64, 3))) for name in ("published", "ours", "gather")]
    assert counts == [8, 3, 1]


# ---------------------------------------------------------------------------- held out, and N nodes


def rows_of(link, name, cores, point, compute):
    """Rows as from perf.sinkhorn.ranks, for a machine that follows the model exactly."""
    rows = []
    for ranks in (1, 2, 4):
        slower = max(1.0, ranks / cores)
        common = {
            "ranks": ranks,
            "link": name,
            "crowded": False,
            "delay": None,
            "on_gpu": False,
            "rounds": [0.0],
            "sent": [],
        }
        for size in (2_400, 240_000):
            seconds = seconds_of(link, "all_reduce", size, ranks, cores)
            times = {"seconds": 2 * seconds, "in_collectives": 2 * seconds, "fastest": (seconds, seconds)}
            rows.append(common | {"bytes": size, "point": None} | times)
        inside = sum(seconds_of(link, kind, size, ranks, cores) for kind, size in sent(point))
        own = compute * slower
        times = {"seconds": 2 * own + inside, "in_collectives": inside, "fastest": (own + inside, inside)}
        rows.append(common | {"bytes": 0, "point": point} | times)
    return rows


def test_the_held_out_error_is_zero_if_and_only_if_the_machine_follows_the_model():
    point = Point("ours", 3000, 64, 3)
    rows = rows_of(TRUE, "local", 2, point, 1e-3)
    tested = held_out(rows, links(rows, 2), 2)
    assert [(row["what"], row["ranks"]) for row in tested] == [("all-reduce", 4)] * 2 + [("codes", 4)]
    assert [row["error"] for row in tested] == pytest.approx([0, 0, 0], abs=1e-3)
    slower = [row | {"fastest": [2 * value for value in row["fastest"]]} if row["ranks"] == 4 else row for row in rows]
    assert [row["error"] for row in held_out(slower, links(slower, 2), 2)] == pytest.approx([-0.5] * 3, abs=1e-3)


def on_one_core(rows, link, point, compute, meeting):
    """The rows, with two ranks again as on one core, and with four ranks on two cores that wait twice as long."""
    all_rows = []
    for row in rows:
        inside = row["point"] and sum(seconds_of(link, kind, size, 2, 1) for kind, size in sent(point))
        if row["ranks"] == 2:
            alone = (seconds_of(link, "all_reduce", row["bytes"], 2, 1),) * 2
            whole = (2 * compute + meeting + inside, meeting + inside) if row["point"] else alone
            all_rows.append(row | {"crowded": True, "fastest": whole})
        if row["ranks"] == 4 and row["point"]:
            row = row | {"fastest": (row["fastest"][0] + 2 * meeting, row["fastest"][1] + 2 * meeting)}
        all_rows.append(row)
    return all_rows


def test_two_ranks_on_one_core_predict_four_on_two_cores():
    point = Point("ours", 3000, 64, 3)
    rows = on_one_core(rows_of(TRUE, "local", 2, point, 1e-3), TRUE, point, 1e-3, 5e-4)
    for row in rows:  # with their own cores there is no switching, and they are faster than the link of the model
        if row["ranks"] == 2 and not row["crowded"] and not row["point"]:
            row["fastest"] = (0.5 * row["fastest"][0], 0.5 * row["fastest"][1])
    tested = held_out(rows, links(rows, 2), 2)
    assert [row["error"] for row in tested] == pytest.approx([0, 0, 0], abs=1e-3)


def test_codes_that_do_not_fit_into_the_cache_are_not_held_out():
    point = Point("ours", 3000, 64, 3)
    rows = rows_of(TRUE, "local", 2, point, 1e-3)
    everyone = 4 * 3 * 4 * 2 * 64 * 3000  # ranks, arrays, bytes, crops, batch, prototypes
    assert {row["what"] for row in held_out(rows, links(rows, 2), 2, everyone)} == {"all-reduce", "codes"}
    assert {row["what"] for row in held_out(rows, links(rows, 2), 2, everyone - 1)} == {"all-reduce"}


def test_rows_of_all_starts_are_pooled():
    row = {"ranks": 2, "crowded": False, "bytes": 4, "point": None, "sent": []}
    other = row | {"bytes": 8, "calls": [(9.0, 9.0)]}
    starts = [[row | {"calls": [[3.0, 1.0], [4.0, 2.0]]}, other], [row | {"calls": [[2.0, 1.5]]}]]
    (pooled_row,) = pooled(starts)
    assert pooled_row["rounds"] == [3.0, 4.0, 2.0] and pooled_row["fastest"] == (2.0, 1.5)
    assert (pooled_row["seconds"], pooled_row["in_collectives"]) == (3.0, 1.5)


def test_a_tree_overtakes_the_ring_with_the_nodes():
    network, message = given(20e-6, 25e9, 8), Message("all_reduce", 24_000)
    ring = Network("ring", network.near, network.far, 8)
    assert between_nodes(network, message, 512) < between_nodes(ring, message, 512) / 10
    near, far = network.near, network.far
    tree = near.call + 14 * near.alpha + 18 * far.alpha + 2 * 24_000 * far.per_byte
    assert between_nodes(network, message, 512) == pytest.approx(tree)
    assert between_nodes(network, message, 1) == pytest.approx(
        near.call + 14 * near.alpha + 14 / 8 * 24_000 * near.per_byte
    )


def test_a_ring_through_nodes_leaves_each_of_them_once_a_round():
    near, far = Link(0.0, 0.0, 1.0, 0.0), Link(0.0, 1000.0, 0.0, 0.0)
    network = Network("ring", near, far, 4)
    assert between_nodes(network, Message("all_reduce", 8), 2) == pytest.approx(4 * 1000 + 10)
    assert between_nodes(network, Message("all_gather", 8), 2) == pytest.approx(2 * 1000 + 5)
    assert between_nodes(network, Message("all_reduce", 8), 1) == pytest.approx(6)


def test_exposed_time_adds_up_and_the_thresholds_are_where_the_shares_pass_them():
    point, network, step = Point("ours", 3000, 64, 3), given(20e-6, 25e9, 8), 0.046
    compute = compute_by_traffic(3.35e12)
    table = predictions([point], [network], step, compute)
    assert [row["nodes"] for row in table] == list(NODES)
    for row in table:
        assert row["exposed_ms"] == pytest.approx(row["compute_ms"] + row["all_reduce_ms"], abs=2e-4)
        assert row["share"] == pytest.approx(row["exposed_ms"] / 46, abs=1e-5)
    first = nodes_at(0.01, point, network, step, compute)
    shares = {row["nodes"]: row["share"] for row in predictions([point], [network], step, compute, range(1, 513))}
    assert shares[first] > 0.01 and all(shares[count] <= 0.01 for count in range(1, first))
    assert nodes_at(0.9, point, network, step, compute) is None


def test_gathering_costs_more_arithmetic_with_every_rank():
    rows = [
        {"point": Point(name, 3000, 64, 3), "ranks": 1, "crowded": False, "seconds": 3e-3, "in_collectives": 1e-3}
        for name in VARIANTS
    ]
    compute = compute_of(rows)
    assert [compute(row["point"], 16) for row in rows] == pytest.approx([2e-3, 2e-3, 32e-3])
    assert compute(Point("ours", 7, 64, 3), 16) is None
    assert predictions([Point("ours", 7, 64, 3)], [given(5e-6, 25e9, 8)], 1.0, compute) == []


# ---------------------------------------------------------------------------- the program


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    flags = "--no-hosts --budget 300 --rounds 3 --prototypes 30,60 --batch 4 --iterations 3 --step-ms 50 "
    flags += "--latency-us 5,40,80"
    done = program(*flags.split(), "--json", "figures.json", folder=folder)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "figures.json").read_text()) | {"printed": done.stdout}


@SLOW
def test_every_variant_is_measured_on_one_two_and_four_ranks_with_its_collectives(report):
    places = {(row["variant"], row["prototypes"], row["ranks"]) for row in report["measured"]}
    assert places == {(name, count, ranks) for name in VARIANTS for count in (30, 60) for ranks in (1, 2, 4)}
    for row in report["measured"]:
        messages = sent(Point(row["variant"], row["prototypes"], row["batch"], row["iterations"]))
        assert row["collectives"] == len(messages) and row["bytes"] == sum(message.bytes for message in messages)
        assert 0 < row["min"] <= row["ms"] <= row["max"] and row["rounds"] >= 3
        assert row["ms"] == pytest.approx(row["compute_ms"] + row["all_reduce_ms"], abs=2e-4)


@SLOW
def test_the_model_is_compared_with_four_ranks_and_its_worst_error_is_reported(report):
    tested = report["held_out"]
    assert {(row["what"], row["ranks"]) for row in tested} == {("all-reduce", 4), ("codes", 4)}
    assert report["error"] == max(abs(row["error"]) for row in tested)
    for row in tested:
        assert row["error"] == pytest.approx(row["predicted_us"] / row["measured_us"] - 1, abs=0.01)
    assert {row["ranks"] for row in report["all_reduces"]} == {1, 2, 4}
    assert report["model"]["links"]["local"]["alpha_us"] > 0
    assert "Largest error of a held-out prediction" in report["printed"]


@SLOW
def test_nodes_are_predicted_for_given_and_measured_links_of_the_given_step(report):
    given_links = {"5 us", "40 us", "80 us"}
    assert {row["link"] for row in report["predicted"]} == given_links | {"measured: local"}
    assert {row["nodes"] for row in report["predicted"]} == set(NODES)
    assert set(report["nodes_at_1_percent"]) == set(report["nodes_at_5_percent"]) == set(VARIANTS)
    assert report["step_ms"] == 50 and report["nodes_at_link"] == "40 us"
    assert report["settings"]["compute"] == "measured: local"
    assert any("--no-hosts" in reason for reason in report["left_out"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prototypes", "30,many"], "swave: --prototypes=30,many: expected numbers"),
        (["--batch", "0"], "swave: --batch=0: expected numbers above 0"),
        (["--latency-us", "-5"], "swave: --latency-us=-5: expected numbers above 0"),
        (["--budget", "0"], "swave: --budget=0: expected more than 0"),
        (["--step-ms", "-1"], "swave: --step-ms=-1: expected more than 0"),
        (["--rounds", "2"], "swave: --rounds=2: expected 3 or more"),
        (["--ranks", "0"], "swave: --ranks=0: expected 1 to 64"),
        (["--json", "nowhere/out.json"], "swave: --json=nowhere/out.json: there is no folder"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(tmp_path, flags, message):
    process = run_module("perf.sinkhorn", f"{flags[0]}={flags[1]}", folder=tmp_path)
    assert process.returncode == 2
    assert process.stderr.startswith(message) and process.stderr.count("\n") == 1
