"""Files for clusters, tested without a cluster: the SLURM script's body runs on this machine, manifests fit their
schemas, the pod's launcher runs as PID 1, and the Dockerfile fits the checkout."""

import copy
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import psutil
import pytest
import yaml

from config.recipe import ROOT, ConfigError, load_config
from launch.nodes import read_hostfile
from launch.pod import main, pod_index
from launch.wheels import lock_of
from perf.kill_check import make_recipe
from support.programs import wait_for_steps

SBATCH = ROOT / "launch" / "slurm.sbatch"


# ---------------------------------------------------------------------------------------------- SLURM
def test_the_slurm_script_parses_and_asks_for_its_warning():
    assert subprocess.run(["bash", "-n", str(SBATCH)]).returncode == 0
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", SBATCH.read_text(), re.MULTILINE))
    assert asked["signal"] == "B:USR1@120" and "requeue" in asked and asked["ntasks-per-node"] == "1"
    assert asked["open-mode"] == "append" and {"nodes", "gpus-per-node", "cpus-per-task", "time", "output"} <= set(
        asked
    )


def submit(folder, *settings):
    """Run the script's body as SLURM does on a node, with an scontrol that records its arguments."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n')
    (folder / "bin" / "scontrol").chmod(0o755)
    job = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "17", "PATH": f"{folder}/bin:{os.environ['PATH']}"}
    environment = os.environ | job | {"SLURM_NTASKS_PER_NODE": "1", "GPUS": "1"}
    shutil.copy(SBATCH, folder / "slurm_script")  # SLURM runs a copy
    with (folder / "output").open("a") as output:
        return subprocess.Popen(
            ["bash", str(folder / "slurm_script"), *settings], cwd=folder, env=environment, stdout=output, stderr=output
        )


needs_venv = pytest.mark.skipif(not (ROOT / ".venv" / "bin" / "python").exists(), reason="no .venv in the checkout")


@pytest.mark.slow
@needs_venv
def test_the_slurm_job_saves_is_queued_again_and_resumes_to_the_end(tmp_path):
    settings = [str(make_recipe(tmp_path)), f"run.directory={tmp_path}/run", "run.epochs=10", "checkpoint.every=never"]
    process = submit(tmp_path, *settings)
    wait_for_steps(tmp_path / "run", 4, process, tmp_path / "output")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 0, (tmp_path / "output").read_text()
    output = (tmp_path / "output").read_text()
    assert "stopped by a signal, saved" in output and "job 17 is queued again" in output
    assert (tmp_path / "asked").read_text() == "requeue 17\n" and not (tmp_path / "run" / "summary.json").exists()

    assert submit(tmp_path, *settings).wait(timeout=120) == 0, (tmp_path / "output").read_text()
    assert "resuming from" in (tmp_path / "output").read_text() and (tmp_path / "run" / "summary.json").exists()
    assert (tmp_path / "asked").read_text() == "requeue 17\n"  # not again


@needs_venv
def test_a_mistake_ends_the_slurm_job_with_its_exit_code(tmp_path):
    assert submit(tmp_path).wait(timeout=60) == 2
    assert submit(tmp_path, "config/none.yaml").wait(timeout=60) == 2
    output = (tmp_path / "output").read_text()
    assert "give a recipe" in output and "config/none.yaml: no such recipe" in output
    assert not (tmp_path / "asked").exists()


# ---------------------------------------------------------------------------------------------- Kubernetes
def manifests(name):
    return list(yaml.safe_load_all((ROOT / "launch" / "kubernetes" / name).read_text()))


def complaint(manifest):
    """Why a manifest does not fit the schema of its kind; "" if it fits. The models drop unknown keys, so a manifest
    that fits comes out of them unchanged."""
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="kubeflow-trainer-api (dev) is not installed")
    kinds = {
        ("v1", "Service"): models.IoK8sApiCoreV1Service,
        ("v1", "PersistentVolumeClaim"): models.IoK8sApiCoreV1PersistentVolumeClaim,
        ("batch/v1", "Job"): models.IoK8sApiBatchV1Job,
        ("trainer.kubeflow.org/v1alpha1", "TrainJob"): models.TrainerV1alpha1TrainJob,
    }
    try:
        known = kinds[manifest["apiVersion"], manifest["kind"]].from_dict(manifest).to_dict()
    except ValueError as error:
        return str(error)
    return difference(manifest, known)


def difference(mine, known, place=""):
    """The first place where `known` lacks something of `mine`, or ""."""
    if isinstance(mine, dict) and isinstance(known, dict):
        return next((d for key in mine if (d := difference(mine[key], known.get(key), f"{place}.{key}"))), "")
    if isinstance(mine, list) and isinstance(known, list) and len(mine) == len(known):
        return next((d for i, item in enumerate(mine) if (d := difference(item, known[i], f"{place}[{i}]"))), "")
    return "" if mine == known else f"{place}: {mine!r} is unknown there"


@pytest.mark.parametrize("name", ["shared.yaml", "job.yaml", "trainjob.yaml"])
def test_manifests_fit_their_schemas(name):
    for manifest in manifests(name):
        assert complaint(manifest) == ""


def test_the_schemas_find_mistakes():
    _, job = manifests("job.yaml")
    for place, key, value in (
        ("spec", "completionmode", "Indexed"),
        ("spec", "completions", "two"),
        ("container", "volumeMount", []),
        ("container", "name", None),
    ):
        wrong = copy.deepcopy(job)
        part = wrong["spec"]["template"]["spec"]["containers"][0] if place == "container" else wrong[place]
        part[key] = value
        assert complaint(wrong), (place, key)
    (train,) = manifests("trainjob.yaml")
    train["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJob"] = []
    assert "replicatedJob" in complaint(train)


def test_the_jobs_parts_fit_each_other_and_the_program():
    service, job = manifests("job.yaml")
    (claim,) = manifests("shared.yaml")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    arguments = [a for a in container["args"] if not a.startswith("--")]
    options = dict(a[2:].split("=") for a in container["args"] if a.startswith("--"))
    assert spec["completions"] == spec["parallelism"] == int(options["nodes"])
    assert options["processes"] == container["resources"]["limits"]["nvidia.com/gpu"]
    assert service["spec"]["clusterIP"] == "None" and service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert options["master"] == f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert int(options["port"]) == container["ports"][0]["containerPort"] == service["spec"]["ports"][0]["port"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy requires it
    assert all(
        rule.get("onExitCodes", {}).get("containerName", "node") == "node" for rule in spec["podFailurePolicy"]["rules"]
    )
    (train,) = manifests("trainjob.yaml")
    patch = train["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    patched = patch["template"]["spec"]["template"]["spec"]
    for part in (pod, patched):
        names = {volume["name"] for volume in part["volumes"]}
        assert {mount["name"] for mount in part["containers"][0]["volumeMounts"]} == names
        claims = {v["persistentVolumeClaim"]["claimName"] for v in part["volumes"] if "persistentVolumeClaim" in v}
        assert claims == {claim["metadata"]["name"]}
    recipe, *settings = train["spec"]["trainer"]["args"]
    for given in (arguments, [recipe.replace("/swave", str(ROOT)), *settings]):
        assert load_config(given).run.directory == "/shared/runs/folder"


def test_image_and_manifests_ask_for_the_gpus_jpeg_engine():
    """NVIDIA's runtime mounts its library only for the capability `video`."""
    _, job = manifests("job.yaml")
    (train,) = manifests("trainjob.yaml")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    dockerfile = (ROOT / "launch" / "Dockerfile").read_text()
    asked = [re.search(r"NVIDIA_DRIVER_CAPABILITIES=(\S+)", dockerfile).group(1)]
    for variables in (container["env"], train["spec"]["trainer"]["env"]):
        asked += [one["value"] for one in variables if one["name"] == "NVIDIA_DRIVER_CAPABILITIES"]
    assert [sorted(words.split(",")) for words in asked] == [["compute", "utility", "video"]] * 3


PLACE = ["--nodes", "1", "--processes", "1", "--master", "127.0.0.1", "--port", "29517"]


def pod(folder, *settings):
    """Start launch.pod as a container's PID 1: in a new PID namespace, with empty standard input."""
    inside = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"] if may_unshare() else []
    with (folder / "output").open("a") as output:
        return subprocess.Popen(
            [*inside, sys.executable, "-m", "launch.pod", *PLACE, *settings],
            cwd=ROOT, env=os.environ | {"JOB_COMPLETION_INDEX": "0"},
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip


def may_unshare():
    command = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not may_unshare(), reason="no PID namespaces here (they need root)")
def test_a_pod_that_is_evicted_saves_and_does_not_count_as_done(tmp_path, monkeypatch, capsys):
    recipe = str(make_recipe(tmp_path))
    settings = [recipe, f"run.directory={tmp_path}/run", "run.epochs=2000", "checkpoint.every=never"]
    process = pod(tmp_path, *settings)
    wait_for_steps(tmp_path / "run", 4, process, tmp_path / "output")
    psutil.Process(process.pid).children()[0].send_signal(signal.SIGTERM)  # what the kubelet sends to PID 1
    assert process.wait(timeout=60) == 75, (tmp_path / "output").read_text()
    assert "stopped by a signal, saved" in (tmp_path / "output").read_text()

    (tmp_path / "run" / "summary.json").write_text("{}")  # as if the other pods had finished
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    assert main([*PLACE, *settings]) == 0
    assert "the run is done" in capsys.readouterr().err


@pytest.mark.slow
def test_a_mistake_that_train_finds_ends_the_pod_with_exit_code_2(tmp_path):
    settings = [str(make_recipe(tmp_path)), f"run.directory={tmp_path}/run", "data.path=/nowhere"]
    assert pod(tmp_path, *settings).wait(timeout=60) == 2
    assert "/nowhere" in (tmp_path / "output").read_text()


@pytest.mark.parametrize(
    ("index", "setting", "message"),
    [
        ("0", "run.epochs=none", "run.epochs"),
        ("1", "run.epochs=1", "completions must be 1"),
        ("", "run.epochs=1", "pod of"),
    ],
)
def test_a_mistake_that_the_pod_finds_is_one_line(index, setting, message, monkeypatch, capsys):
    monkeypatch.setenv("JOB_COMPLETION_INDEX", index)
    with pytest.raises(SystemExit) as end:
        main([*PLACE, "config/demo.yaml", setting])
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1


def test_the_pods_index():
    assert pod_index("3", 4) == 3
    for text in (None, "", "-1", "x"):
        with pytest.raises(ConfigError, match="JOB_COMPLETION_INDEX"):
            pod_index(text, 4)


# ---------------------------------------------------------------------------------------------- image, hostfile
def test_the_dockerfile_copies_nothing_that_dockerignore_excludes():
    text = re.sub(r"^#.*\n", "", (ROOT / "launch" / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    taken = [word for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    ignored = set((ROOT / ".dockerignore").read_text().split())
    assert not ignored & {*taken, "wheels"} and {".git", ".venv", "runs", "data"} <= ignored
    assert re.search(r'^ENTRYPOINT \["/swave/.venv/bin/python", "-m", "launch.start"\]$', text, re.MULTILINE)
    for step in re.findall(r"^RUN (?:--mount=\S+)?(.*)$", text, re.MULTILINE):
        assert subprocess.run(["sh", "-n", "-c", step]).returncode == 0


def wheel(folder, name, version):
    """A package with one module, as a wheel."""
    path, info = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", "")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return path


@pytest.mark.slow(seconds=4)
def test_wheels_get_their_own_lock_file_which_pip_enforces(tmp_path):
    import hashlib

    known, built, other = wheel(tmp_path, "One_Thing", "1.0"), wheel(tmp_path, "two", "2"), wheel(tmp_path, "two", "1")
    digest = hashlib.sha256(known.read_bytes()).hexdigest()
    lock = f"one-thing==1.0 ; sys_platform == 'linux' \\\n    --hash=sha256:{digest}\ntwo==2 \\\n    --hash=sha256:00\n"
    lines = lock_of(tmp_path, lock)
    assert [line.split()[0] for line in lines] == ["one-thing==1.0", "two==2"] and not other.exists()
    assert [line.endswith("# built here") for line in lines] == [False, True]
    (tmp_path / "requirements.txt").write_text("\n".join(lines) + "\n")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--find-links",
        str(tmp_path),
        "--require-hashes",
    ]
    command = [*pip, "-r", str(tmp_path / "requirements.txt"), "--target", str(tmp_path / "installed")]
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert (tmp_path / "installed" / "two.py").exists()
    built.write_bytes(known.read_bytes())
    assert subprocess.run([*command, "--upgrade"], capture_output=True).returncode != 0


def test_the_example_hostfile_can_be_read():
    nodes = read_hostfile(Path(ROOT / "launch" / "hosts.example"), 1)
    assert [(node.host, node.processes) for node in nodes] == [("node1", 8), ("node2", 8)]


@pytest.fixture
def checkout(tmp_path):
    """A checkout with a lock file of one package and its wheel; setup(WHEELS) runs its setup.sh, with no index."""
    (tmp_path / "launch").mkdir()
    (tmp_path / "wheels").mkdir()
    shutil.copy(ROOT / "launch" / "setup.sh", tmp_path / "launch")
    shutil.copytree(ROOT / "launch" / "opencv", tmp_path / "launch" / "opencv")
    (tmp_path / "requirements-cuda120.lock").write_text("two==2 \\\n    --hash=sha256:00\n")
    wheel(tmp_path / "wheels", "two", "2")
    lines = lock_of(tmp_path / "wheels", "two==2")
    (tmp_path / "wheels" / "requirements.txt").write_text("\n".join(lines) + "\n")

    def setup(wheels, **environment):
        return subprocess.run(
            ["sh", str(tmp_path / "launch" / "setup.sh"), "requirements-cuda120.lock", sys.executable, wheels],
            env=os.environ | {"PIP_INDEX_URL": "http://127.0.0.1:9", "PIP_RETRIES": "0"} | environment,
            capture_output=True, text=True,
        )  # fmt: skip

    return tmp_path, setup


@pytest.mark.slow
def test_the_wheels_alone_set_up_the_environment(checkout):
    folder, setup = checkout
    assert setup("wheels").returncode == 0
    assert subprocess.run([folder / ".venv" / "bin" / "python", "-c", "import two"]).returncode == 0
    (folder / "wheels").rename(folder / "gone")
    assert setup("").returncode == 0, "set up already: nothing is to be done"


def test_wheels_of_another_lock_file_are_refused_before_anything_is_installed(checkout):
    folder, setup = checkout
    for wheels, spoil, message in (
        ("wheels", lambda: (folder / "requirements-cuda120.lock").write_text("two==2.1 \\\n"), "two==2 is not in"),
        ("none", lambda: None, "there is no none/requirements.txt"),
    ):
        spoil()
        done = setup(wheels)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1) and message in done.stderr, done.stderr
    assert not (folder / ".venv").exists()


def test_setup_without_root_names_the_command_to_give_and_installs_nothing(checkout):
    folder, setup = checkout
    (folder / "bin").mkdir()
    for tool in ("cat", "cut", "dirname", "sha256sum", "sh"):
        (folder / "bin" / tool).symlink_to(shutil.which(tool))
    for name, text in (("id", "echo 1000"), ("apt-get", "exit 1")):  # neither a compiler nor sudo is there
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    done = setup("", PATH=str(folder / "bin"))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert re.match("setup: missing:.* g[+][+] .*; as root: apt-get update && apt-get install", done.stderr)
    assert not (folder / ".venv").exists()


def test_setup_without_a_network_names_the_way_without_one(checkout):
    folder, setup = checkout
    (folder / "requirements-uv.lock").write_text("uv==2\n")
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").write_text("#!/bin/sh\necho no index >&2; exit 1\n")  # as pip ends there
    (folder / ".venv" / "bin" / "python").chmod(0o755)
    done = setup("")
    assert done.returncode == 2 and "WHEELS=wheels" in done.stderr.splitlines()[-1]


def test_setup_leaves_bytecode_so_that_no_process_compiles_torch_anew():
    torch = importlib.util.find_spec("torch").origin
    assert Path(importlib.util.cache_from_source(torch)).exists()


def test_make_lets_python_keep_its_bytecode(tmp_path):
    (tmp_path / "Makefile").write_text(f"include {ROOT / 'Makefile'}\nshow:\n\t@echo set: $$PYTHONDONTWRITEBYTECODE\n")
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    shown = subprocess.run(
        ["make", "-s", "show"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "set:"
