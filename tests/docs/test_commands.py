"""Commands in the pages: a test runs each program, or a reason says why not; the program's own parser accepts the
arguments; all settings are known."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import subprocess
import sys
from functools import cache

import pytest

from config.recipe import ROOT, load_config
from support.documents import command_lines, pages

# Program -> the test that runs it.
RUN_BY = {
    "train.py": "test_the_same_run_starts_under_every_launcher",
    "torchrun train.py": "test_torchrun_elastic_starts_it_too",
    "torchrun evaluate.py": "test_two_processes_give_the_table_of_one",
    "evaluate.py knn": "test_a_published_checkpoint_is_evaluated",
    "evaluate.py linear": "test_one_pass_over_two_rates_is_two_passes_over_one",
    "evaluate.py fewshot": "test_each_draw_is_scikit_learns_accuracy_and_the_interval_is_scipys",
    "evaluate.py segment": "test_a_linear_layer_learns_the_cut_outs_and_a_seed_gives_the_same",
    "evaluate.py dense": "test_labels_are_carried_over_to_the_cut_outs",
    "evaluation.report": "test_several_runs_are_side_by_side",
    "evaluate.py semisup": "test_a_fraction_of_each_class_is_learned_from",
    "evaluate.py transfer": "test_transfer_takes_a_list",
    "evaluate.py svm": "test_voc_is_scored_from_its_folder",
    "evaluate.py retrieval": "test_retrieval_writes_its_sheet",
    "evaluate.py clusters": "test_each_image_has_its_prototype_score_and_entropy",
    "evaluate.py report": "test_one_page_holds_tables_and_pictures",
    "evaluation.curve": "test_the_learning_curve_of_a_run_is_drawn",
    "export": "test_a_run_its_checkpoint_and_its_exports_are_one_backbone",
    "launch.start": "test_the_same_run_starts_under_every_launcher",
    "launch.cluster_check": "test_the_cluster_check_reports_its_results",
    "launch.sync": "test_a_checkout_is_copied_and_the_nodes_own_files_stay",
    "launch.wheels": "test_wheels_get_their_own_lock_file_which_pip_enforces",
    "perf.backbones": "test_models_are_checked_once_and_the_page_has_them",
    "perf.backbones.exports": "test_a_family_is_exported_once_and_every_format_gives_the_same_features",
    "perf.compare": "test_single_parts_of_a_report_are_accepted",
    "perf.gpu_check": "test_it_explains_each_part_without_a_gpu_and_without_torch",
    "perf.distilling": "test_both_students_take_the_same_steps_and_a_second_call_repeats_no_run",
    "perf.faults": "test_a_fault_costs_nothing_that_was_saved",
    "perf.faults.long_run": "test_a_run_is_watched_to_its_end",
    "make fuzz": "test_the_program_counts_what_it_reads",
    "perf.going_on": "test_both_starts_take_the_same_steps_and_a_second_call_repeats_no_run",
    "perf.kill_check": "test_killed_runs_end_with_the_same_bits_at_each_stage",
    "perf.loader": "test_every_contender_has_its_median_lowest_and_highest_rate",
    "perf.loader.calls": "test_the_calls_are_timed_beside_each_way_to_load",
    "perf.memory": "test_the_formula_is_within_10_percent_of_the_memory_of_two_ranks",
    "perf.parity": "test_parity_is_reported_for_every_operation_and_within_its_limits",
    "perf.tables.tiling": "test_the_program_of_the_docs_measures_at_toy_size",
    "perf.channels": "test_both_backends_make_all_crops_of_each_kind",
    "perf.nearest": "test_the_search_is_timed_beside_its_products",
    "perf.photographs": "test_contenders_take_turns_and_ratios_are_of_this_checkout",
    "perf.profile": "test_the_whole_report_of_a_tiny_recipe",
    "perf.remote": "test_disk_and_caches_take_turns_and_few_bytes_are_fetched_in_vain",
    "perf.science": "test_the_whole_check_at_toy_size_and_no_job_runs_twice",
    "perf.sinkhorn": "test_every_variant_is_measured_on_one_two_and_four_ranks_with_its_collectives",
    "perf.start": "test_a_start_imports_torch_once_and_its_spans_add_up",
    "perf.step": "test_all_phases_are_there_and_their_shares_add_up",
    "perf.tables.scale": "test_a_table_is_measured_in_each_phase_by_ranks_of_both_checkouts",
    "perf.tables.scan": "test_scans_take_turns_and_ratios_are_of_headers",
    "perf.step.launches": "test_backbone_at_two_resolutions_and_head_are_three_graphs",
    "perf.step.turns": "test_two_checkouts_train_a_recipe",
    "pipeline.convert": "test_patterns_and_blanks_reach_the_program_unchanged",
    "pipeline.collections": "test_the_second_call_returns_at_once_and_says_so",
    "pipeline.stats": "test_pictures_have_statistics_too",
    "pipeline.preview": "test_the_preview_shows_each_crop_in_the_colors_of_its_window",
    "sbatch": "test_the_slurm_job_saves_is_queued_again_and_resumes_to_the_end",
    "make help": "test_make_help_lists_the_commands",
    "config.schema": "test_help_is_printed",
    "train.py --help": "test_help_is_printed",
    "evaluate.py --help": "test_help_is_printed",
}
CLUSTER, OTHER, BENCHMARK, SETUP = (
    "needs Kubernetes or Docker",
    "a program of another project",
    "a benchmark of minutes on a quiet machine",
    "sets up or checks this checkout: tests run inside it",
)
NOT_RUN = {
    "perf.save_time": BENCHMARK,
    "perf.zero_check": BENCHMARK,
    "perf.virtual_cluster.throughput": BENCHMARK,
    "kubectl": CLUSTER,
    "docker": CLUSTER,
    "ipykernel": OTHER,
    "tensorboard": OTHER,
    "tools/train_net.py": OTHER,
    "run_with_submitit.py": OTHER,
    "make setup": SETUP,
    "make test": SETUP,
    "make test-fast": SETUP,
    "make mutation-check": "needs cosmic-ray",
    "make lint": SETUP,
    "pre-commit": SETUP,
}
PAGES = [page for page in pages() if page.name != "CHANGELOG.md"]  # which also has removed commands
LINES = sorted({line for page in PAGES for line in command_lines(page.read_text())})
BARE = re.compile(r"make [a-z-]+")  # a target named in prose


@pytest.mark.parametrize("line", LINES)
def test_its_program_is_run_by_a_test_or_a_reason_says_why_not(line):
    for name, _ in programs(line):
        test = RUN_BY.get(name)
        assert test or name in NOT_RUN, f"{name} of `{line}`: add it to RUN_BY or NOT_RUN"
        assert test is None or test in names_of_tests(), f"{name}: there is no test {test}"


@pytest.mark.parametrize("line", [line for line in LINES if not BARE.fullmatch(line)])
def test_its_program_takes_its_arguments(line, monkeypatch):
    for name, arguments in programs(line):
        if name.startswith("torchrun "):
            arguments = without_torchruns(arguments)
            name = name.removeprefix("torchrun ")
        if name == "train.py":
            load_config(arguments)
        elif name.startswith("evaluate.py") and name != "evaluate.py --help":
            parsed(monkeypatch, "evaluate", arguments)
        elif name in RUN_BY and module_of(name):
            check_settings(parsed(monkeypatch, module_of(name), arguments))


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("make train") and "NODES" not in line])
def test_a_dry_training_prints_its_command(line, capsys, tmp_path):
    from launch import start

    if "model.lora" in line:
        pytest.importorskip("peft", reason="peft is not installed")
    weights = tmp_path / "weights.pth"
    weights.touch()
    ((_, arguments),) = programs(line)
    settings = [word for word in arguments if word != "--dry"]
    for recipe, section in (("config/continue.yaml", "model"), ("config/distill.yaml", "distill")):
        settings += [f"{section}.weights={weights}"] * (recipe in settings)
    assert start.main(["--dry", "--processes", "2", *settings]) == 0
    assert "train.py" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, part",
    [
        ("train.py --help", "train.py"),
        ("train.py --help swav.queue", "swav.queue.length"),
        ("train.py --version", "swave 0."),
        ("evaluate.py --help", "evaluate.py"),
        ("-m config.schema", "swav.queue.length"),
    ],
)
def test_help_is_printed(arguments, part):
    command = [sys.executable, *arguments.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert part in done.stdout


def test_make_help_lists_the_commands():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "make train" in done.stdout


def test_no_entry_of_the_tables_is_left_over():
    shown = {name for line in LINES for name, _ in programs(line)}
    assert {*RUN_BY, *NOT_RUN} <= shown


# ---------------------------------------------------------------------------------------------- which programs run
def programs(line):
    """(name, arguments) of every program that a command line runs, also by way of a make target."""
    return [program for part in line.split(" && ") for program in programs_of(part)]


@cache
def programs_of(line):
    words = shlex.split(line)
    if words[0] == "make":
        return programs_of_make(words)
    if words[0] == ".venv/bin/torchrun":
        script = next(word for word in words if word.endswith(".py"))
        return [(f"torchrun {script}", words[1:])]
    if words[0].endswith("python"):
        return [program_of_python(words[1:])]
    if words[0] in ("train.py", "evaluate.py"):
        return [program_of_python(words)]
    return [(words[0].rpartition("/")[2], words[1:])]


def program_of_python(words):
    if words[0] == "-m":
        return words[1], words[2:]
    script, *arguments = words
    with_command = script == "evaluate.py" or (script == "train.py" and arguments[0].startswith("--"))
    return f"{script} {arguments[0]}" if with_command else script, arguments


def programs_of_make(words):
    """The programs that a target runs, by `make -n`; the target itself where it runs no program of swave."""
    variables = dict(word.split("=", 1) for word in words[2:] if "=" in word)
    needed = {"convert": {"SRC": "x", "OUT": "x.beton", "FORMAT": "beton"}, "sync": {"HOSTFILE": "hosts"}}
    needed["stats"] = {"DATA": "x"}
    needed["export"] = {"CKPT": "x", "OUT": "x.pth", "FORMAT": "timm"}
    variables = {**needed.get(words[1], {}), **variables}
    command = ["make", "-n", words[1], *(f"{name}={value}" for name, value in variables.items())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    printed = re.sub(r"\$(\w+)", lambda name: variables.get(name[1], name[0]), done.stdout.replace("\\\n", " "))
    printed = re.sub(r"^\. \S+ && ", "", printed, flags=re.MULTILINE)  # a file of variables that is read first
    lines = [shlex.split(line) for line in printed.splitlines() if line.startswith(".venv/bin/python -m ")]
    started = [program_of_python(line[1:]) for line in lines]
    ours = [program for program in started if module_of(program[0])]
    return ours or [(f"make {words[1]}", [])]


def module_of(name):
    """The module that `python -m name` runs, None if it is not one of swave's."""
    path = ROOT / name.replace(".", "/")
    if (path / "__main__.py").is_file():
        return f"{name}.__main__"
    return name if path.with_suffix(".py").is_file() and not name.endswith(".py") else None


def without_torchruns(words):
    """The script's arguments; torchrun's parser takes off its own."""
    from torch.distributed.run import get_args_parser

    given = get_args_parser().parse_args(words)
    return given.training_script_args


# ---------------------------------------------------------------------------------------------- their arguments
class Parsed(Exception):
    """Raised in place of a program's work, with the arguments that its parser returned."""


def parsed(monkeypatch, module, arguments):
    """The namespace that the program's parser returns; fails if the parser refuses the arguments."""

    def stopping_after(parse):
        def parse_and_stop(self, args=None, namespace=None):
            raise Parsed(parse(self, args, namespace))

        return parse_and_stop

    main = importlib.import_module(module).main
    with monkeypatch.context() as patched:
        for name in ("parse_args", "parse_intermixed_args"):
            patched.setattr(argparse.ArgumentParser, name, stopping_after(getattr(argparse.ArgumentParser, name)))
        with pytest.raises(Parsed) as stopped:
            main(arguments)
    return stopped.value.args[0]


def check_settings(options):
    """Raises ConfigError for a missing recipe and for unknown settings."""
    words = [options.recipe] if getattr(options, "recipe", None) else []
    words += getattr(options, "settings", None) or []
    recipe = getattr(options, "config", None)
    words += [str(recipe)] if str(recipe).endswith(".yaml") else []
    if not words:
        return
    if not any(word.endswith(".yaml") for word in words):
        words = ["config/demo.yaml", *words]
    if not any(word.startswith("data.path=") for word in words):
        words.append("data.path=images")
    load_config([str(ROOT / word) if word.startswith("config/") else word for word in words])


@cache
def names_of_tests():
    return {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *def (test_\w+)", file.read_text(), re.MULTILINE)
    }
