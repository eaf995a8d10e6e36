"""Settings: every mistake is one line that names the key, and nothing heavy is imported to find it."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from config.recipe import ROOT, ConfigError, check_given, load_config
from pipeline.crops import crops_from_config
from support.programs import run_module
from training.auto import fit
from training.deepspeed_engine import deepspeed_config
from training.distributed import Cluster

DEMO = str(ROOT / "config" / "demo.yaml")
RECIPES = sorted(str(p) for p in (ROOT / "config").rglob("*.yaml") if p.name != "default.yaml")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_valid(recipe):
    config = load_config([recipe, "data.path=/some/images"])
    assert config.run.epochs >= 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimizer.base_rl=1", "unknown key optimizer.base_rl; the nearest is optimizer.base_lr"),
        ("crop.local.count=4", "unknown key crop.local.count; the nearest is crops.local.count"),
        ("crops.local=4", "crops.local is a section, not a value; its keys are crops.local.count"),
        ("run.epochs=ten", "run.epochs=ten: expected an integer"),
        ("run.epochs=1.5", "run.epochs=1.5: expected an integer"),
        ("run.epochs=0", "run.epochs=0: expected at least 1"),
        ("launch.timeout=0", "launch.timeout=0: expected at least 1 second"),
        ("launch.restarts=-1", "launch.restarts=-1: expected 0 or more"),
        ("run.seed=-1", "run.seed=-1: expected 0 to 4294967295"),
        ("optimizer.base_lr=fast", "optimizer.base_lr=fast: expected auto or a number"),
        ("optimizer.base_lr=0", "optimizer.base_lr=0: expected more than 0"),
        ("optimizer.exclude_1d=1", "optimizer.exclude_1d=1: expected true or false"),
        ("optimizer.scale_lr_from=0", "optimizer.scale_lr_from=0: expected null or images a step"),
        ("optimizer.scale_lr_from=many", "optimizer.scale_lr_from=many: expected null or images a step"),
        ("optimizer.final_lr=5", "optimizer.final_lr=5: expected at most optimizer.base_lr"),
        ("crops.global.scale=[0.5]", "crops.global.scale=[0.5]: expected a list of 2 numbers"),
        ("crops.global.scale=[0.9,0.2]", "crops.global.scale=[0.9, 0.2]: expected [low, high]"),
        ("crops.global.size=3", "crops.global.size=3: expected 4 to 4096 pixels"),
        ("crops.flip=2", "crops.flip=2: expected a probability"),
        ("crops.jitter.hue=0.6", "crops.jitter.hue=0.6: expected 0 to 0.5 turns"),
        ("crops.jitter.exact=yes!", "crops.jitter.exact=yes!: expected auto, true or false"),
        ("crops.jitter.exact=1", "crops.jitter.exact=1: expected auto, true or false"),
        (
            "crops.jitter.exact=true pipeline.backend=dali",
            "crops.jitter.exact=True: expected auto or false with pipeline.backend=dali",
        ),
        ("swav.assigning=[0,9]", "swav.assigning=[0, 9]: expected different crops"),
        ("swav.assigning=[0,0]", "swav.assigning=[0, 0]: expected different crops"),
        ("pipeline.backend=pil", "pipeline.backend=pil: expected auto, dali, ffcv or torchvision"),
        ("data.path=", "data.path is not set; give it as data.path=..."),
        ("data.path=/d/${x}", "data.path: Interpolation key 'x' not found"),
        (r"data.path=/d/\${x}", "data.path: Interpolation key 'x' not found"),
        ("crops.mean=['${x}',1,1]", "crops.mean: Interpolation key 'x' not found"),
        ("model.backbone=resnet5", "model.backbone=resnet5: neither one of swave's nor a model of timm"),
        ("model.backbone=vit_smal_patch16_224", "nearest: vit_small_patch16_224, "),
        ("model.backbone=torchvision:resnet5", "torchvision has no such classifier; nearest: resnet50, "),
        ("distill.backbone=resnet50w3", "distill.backbone=resnet50w3: neither "),
        ("model.backbone=hf-hub:timm/resnet18", "neither one of swave's nor a model of timm"),
        ("model.options=[1]", "model.options=[1]: expected a mapping"),
        ("engine.deepspeed=[1]", "engine.deepspeed=[1]: expected a mapping"),
        ("data.max_bad_fraction=1.5", "data.max_bad_fraction=1.5: expected a share"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(setting, message):
    with pytest.raises(ConfigError) as error:
        load_config([DEMO, *setting.split()])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.weights=/no/a.pth", "model.weights=/no/a.pth: no such file or folder"),
        ("distill.weights=/no/a.pth", "distill.weights=/no/a.pth: no such file or folder"),
        ("model.backbone=torchvison:resnet18", "model.backbone=torchvison:resnet18: there is no module torchvison in "),
        ("crops.custom=none.such:noise", "crops.custom=none.such:noise: there is no module none in "),
        (
            "crops.groups=[{count: 2, custom: 'none:noise'}]",
            "crops.groups[0].custom=none:noise: there is no module none",
        ),
    ],
)
def test_what_is_not_there_is_one_line_before_anything_starts(tmp_path, setting, message):
    settings = [setting, f"run.directory={tmp_path}", *(["method=distill"] if setting.startswith("distill.w") else [])]
    config = load_config([DEMO, *settings])
    for module in ("launch.start", "train"):
        done = run_module(module, DEMO, *settings)
        assert done.returncode == 2 and done.stderr.startswith(f"swave: {message}") and done.stderr.count("\n") == 1
    if "weights" in setting:
        (tmp_path / "checkpoints/step-000000001").mkdir(parents=True)
        check_given(config)  # a run that has begun needs no weights


def test_a_value_that_blanks_have_cut_says_how_to_quote_it():
    with pytest.raises(ConfigError, match=r"give one recipe .*; quote a value that has blanks: \"data\.path='/my im"):
        load_config([DEMO, "data.path=/my", "images"])
    with pytest.raises(ConfigError, match=r"not 'nothing'$"):
        load_config([])


@pytest.mark.parametrize("recipe", ["demo.yaml", "config/demo", "config/demo.yml", "config/Demo.yaml"])
def test_a_missing_recipe_names_the_nearest_one(recipe):
    with pytest.raises(ConfigError, match=rf"^{recipe}: no such recipe; the nearest .* is config/demo\.yaml$"):
        load_config([recipe])


def test_a_recipe_that_is_missing_in_another_folder_is_named_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        load_config(["config/demo.yaml"])
    assert str(error.value).endswith(f"below config/ is {DEMO}")


def test_a_missing_data_path_says_how_to_give_it(tmp_path):
    (tmp_path / "mine.yaml").write_text("run: {epochs: 3}\n")
    with pytest.raises(ConfigError, match=r"data\.path is not set; give it as data\.path=\.\.\."):
        load_config([str(tmp_path / "mine.yaml")])


def test_a_broken_recipe_is_one_line(tmp_path):
    (tmp_path / "mine.yaml").write_text("run: {epochs: [\n")
    with pytest.raises(ConfigError) as error:
        load_config([str(tmp_path / "mine.yaml")])
    assert "\n" not in str(error.value)


def test_arguments_override_the_recipe_and_the_recipe_the_defaults():
    config = load_config([DEMO, "crops.local.count=4", "optimizer.base_lr=0.01"])
    assert (config.crops.local.count, config.optimizer.base_lr) == (4, 0.01)
    assert config.crops["global"].size == OmegaConf.load(DEMO).crops["global"].size
    assert config.swav.temperature == 0.1


@pytest.mark.parametrize("name", ["lr=0.1/recipe.yaml", "model.backbone=x.yaml", "50 %, [1] #2/~/-a=b.yaml"])
def test_a_recipes_path_may_have_any_characters(tmp_path, monkeypatch, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("run: {epochs: 3}\n")
    monkeypatch.chdir(tmp_path)
    for recipe in (name, str(tmp_path / name)):
        assert load_config([recipe, "data.path=."]).run.epochs == 3


def test_a_missing_recipe_with_an_equals_sign_in_its_path_is_not_taken_for_a_setting():
    with pytest.raises(ConfigError, match=r"sweeps/lr=0\.1/nope\.yaml: no such recipe"):
        load_config(["sweeps/lr=0.1/nope.yaml", "data.path=."])


@pytest.mark.parametrize(
    "path",
    ["a, b", "[1]", "{x}", "x: y", "50 % #2", "2024", "1e3", "true", "null", "-x", "*", "@a=b", "'", "a\\b", "&x"],
)
def test_a_path_is_taken_as_it_stands(path):
    config = load_config([DEMO, f"data.path={path}", f"run.directory={path}"])
    assert config.data.path == config.run.directory == path


def test_a_path_in_quotes_is_read_as_in_a_recipe_and_null_is_no_path():
    config = load_config([DEMO, "data.path='a b'", "data.test=null", "model.weights=~"])
    assert (config.data.path, config.data.test, config.model.weights) == ("a b", None, None)


def test_a_path_may_start_at_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("data: {path: ~/images, test: /a/~}\n")
    config = load_config(["~/mine.yaml", "data.cache=~/tables", "run.directory=~", "model.weights=~/a.pth"])
    home = str(tmp_path)
    assert (config.data.path, config.data.test) == (f"{home}/images", "/a/~")
    assert (config.data.cache, config.run.directory, config.model.weights) == (f"{home}/tables", home, f"{home}/a.pth")


@pytest.mark.parametrize(
    "arguments", [["config/demo.yaml", "run.epochs=ten"], ["config/demo.yaml", "data.path=/nowhere"]]
)
@pytest.mark.parametrize("program", [["train.py"], ["-m", "launch.start"]])
def test_a_mistake_ends_with_code_2_and_one_line(arguments, program):
    done = subprocess.run(
        [sys.executable, *program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("swave: ")
    assert arguments[1] in line


def test_settings_are_checked_without_importing_torch():
    code = (
        "import sys; sys.argv = ['train.py', 'config/demo.yaml', 'run.epochs=ten']; import train\n"
        "try: train.main(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code == 2\n"
        "assert not {'torch', 'deepspeed', 'nvidia.dali'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


# ---- settings that a recipe leaves at auto


@pytest.mark.parametrize(
    ("backend", "setting", "exact"),
    [
        ("dali", "auto", False),
        ("ffcv", "auto", True),
        ("torchvision", "auto", True),
        ("dali", "false", False),
        ("ffcv", "false", False),
        ("ffcv", "true", True),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_color_is_exact_by_default_if_the_backend_supports_it(backend, setting, exact, device):
    settings = [f"pipeline.backend={backend}", f"crops.jitter.exact={setting}", f"pipeline.device={device}"]
    assert crops_from_config(load_config([DEMO, *settings]).crops, backend).jitter.exact is exact


def test_decoding_is_scaled_unless_a_recipe_wants_all_pixels():
    assert crops_from_config(load_config([DEMO]).crops).decode == "scaled"
    assert crops_from_config(load_config([DEMO, "crops.decode=exact"]).crops).decode == "exact"


def auto(tmp_path, *settings):
    (tmp_path / "auto.yaml").write_text("data: {path: /my/images}\n")
    return load_config([str(tmp_path / "auto.yaml"), *settings])


@pytest.mark.parametrize(("batch", "rate"), [(256, 0.6), (4096, 4.8), (8192, 4.8), (64, 0.212)])
def test_the_learning_rate_fits_the_global_batch_as_the_paper_chose_it(tmp_path, batch, rate):
    config = auto(tmp_path, f"run.batch_size={batch}")
    notes = fit(config, 1_281_167, Cluster())
    assert config.optimizer.base_lr == pytest.approx(rate, rel=1e-2)
    assert any(line.startswith("optimizer.base_lr=") and "override with" in line for line in notes)


@pytest.mark.parametrize(("images", "prototypes"), [(1_281_167, 3000), (14_000_000, 3000), (60_000, 140), (500, 30)])
def test_prototypes_fit_the_dataset(tmp_path, images, prototypes):
    config = auto(tmp_path)
    assert any(line.startswith(f"model.prototypes={prototypes} ") for line in fit(config, images, Cluster()))
    assert config.model.prototypes == prototypes


def test_small_batches_get_a_queue_and_large_ones_none(tmp_path):
    small, large = auto(tmp_path), auto(tmp_path, "run.batch_size=4096")
    fit(small, 1_281_167, Cluster())
    fit(large, 1_281_167, Cluster())
    assert (small.swav.queue.length, large.swav.queue.length) == (3840, 0)
    assert small.swav.queue.start_epoch == 8  # of 100; the paper has 15 of 200


def test_the_queue_keeps_to_whole_batches_and_small_datasets(tmp_path):
    config = auto(tmp_path, "run.batch_size=96")
    fit(config, 2000, Cluster())
    assert config.swav.queue.length == 480  # a quarter of the images, in whole batches


STARTS = ("model.adapt_steps", "model.freeze_backbone_epochs", "optimizer.backbone_lr_scale")


def starts(config):
    return [OmegaConf.select(config, key) for key in STARTS]


def test_a_run_that_goes_on_from_weights_says_in_one_line_how(tmp_path):
    config = auto(tmp_path, "model.weights=some.pth")
    (line,) = [line for line in fit(config, 10_000, Cluster()) if "goes on from model.weights" in line]
    assert starts(config) == [39, 5, 0.3]  # steps of an epoch, at most 100
    assert line.startswith("model.adapt_steps=39, model.freeze_backbone_epochs=5, optimizer.backbone_lr_scale=0.3  (")
    short = auto(tmp_path, "model.weights=some.pth", "run.epochs=1", "optimizer.backbone_lr_scale=0.5")
    fit(short, 10_000, Cluster())
    assert starts(short) == [39, 0, 0.5]


def test_a_run_from_random_weights_and_an_older_run_go_on_as_before(tmp_path):
    config, resumed = auto(tmp_path), auto(tmp_path, "model.weights=some.pth")
    begun_with = OmegaConf.to_container(resumed)
    for key in STARTS:
        section, name = key.split(".")
        del begun_with[section][name]  # as a run from before these settings
    for one, before in ((config, None), (resumed, begun_with)):
        assert not any("goes on" in line for line in fit(one, 10_000, Cluster(), before))
        assert starts(one) == [0, 0, 1]


@pytest.mark.parametrize(
    ("settings", "images", "world_size", "message"),
    [
        (["swav.queue.length=128"], 10_000, 1, "swav.queue.length=128 is shorter than run.batch_size=256"),
        (["swav.queue.length=300"], 10_000, 1, "swav.queue.length=300 is not a multiple of run.batch_size=256"),
        ([], 100, 1, "run.batch_size=256 is more than the 100 images"),
        ([], 10_000, 3, "run.batch_size=256 does not split evenly over 3 processes"),
        (["run.batch_size=4"], 10_000, 4, "batch norm needs 2 images a process or more"),
        (["pipeline.device=gpu"], 10_000, 1, "pipeline.device=gpu, but no GPU is visible"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_an_error_of_one_line(tmp_path, settings, images, world_size, message):
    with pytest.raises(ConfigError) as error:
        fit(auto(tmp_path, *settings), images, Cluster(0, world_size, 0, world_size))
    assert message in str(error.value)


def test_another_backbone_drops_the_options_of_the_recipes():
    assert load_config(["config/demo.yaml", "model.backbone=vit_tiny_patch16_224"]).model.options == {}
    config = load_config(["config/demo.yaml", "model.options={drop_path_rate: 0.1}", "model.backbone=convnext_atto"])
    assert config.model.options == {"drop_path_rate": 0.1}
    assert load_config(["config/demo.yaml", "model.options.base_width=8"]).model.options.block == "basic"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("run.epochs=[1", "run.epochs=[1: not to be read"),
        ("run.seed=010", "run.seed=010: not to be read (YAML takes 010 for a number that is not decimal"),
        ("swav.epsilon=1:30.5", "swav.epsilon=1:30.5: not to be read (YAML takes 1:30.5 for a number"),
        ("crops.global.scale=[007,1]", "crops.global.scale=[007,1]: not to be read (YAML takes 007"),
        ("swav.temperature=.inf", "swav.temperature=inf: expected finite numbers"),
        ("crops.mean=[.nan,1,1]", "crops.mean=[nan, 1, 1]: expected finite numbers"),
        ("model.prototypes=1", "model.prototypes=1: expected at least 2"),
        ("pipeline.threads=100000", "pipeline.threads=100000: expected at most 1024"),
        ("crops.local.count=100000", "crops.local.count=100000: expected 0 to 64 crops"),
        ("crops.blur.sigma=[0.1,1e6]", "crops.blur.sigma=[0.1, 1000000.0]: expected"),
        ("checkpoint.every=now", "checkpoint.every=now: expected such as '1 epoch'"),
        ("engine.stage=4", "engine.stage=4: expected auto, 0, 1, 2 or 3"),
        ("engine.precision=fp8", "engine.precision=fp8: expected auto, fp32, bf16 or fp16"),
        ("engine.accumulation=3", "engine.accumulation=3: expected a divisor of 128"),
        ("model.freeze_backbone_epochs=13", "model.freeze_backbone_epochs=13: expected less than run.epochs=13"),
    ],
)
def test_impossible_settings_are_an_error_of_one_line(setting, message):
    with pytest.raises(ConfigError) as caught:
        load_config(["config/demo.yaml", setting])
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_a_recipe_has_no_octal_numbers(tmp_path):
    (tmp_path / "x.yaml").write_text("run: {seed: 010}\n")
    with pytest.raises(ConfigError, match=r"x\.yaml: YAML takes 010 for a number that is not decimal"):
        load_config([str(tmp_path / "x.yaml")])
    (tmp_path / "x.yaml").write_text("run: {seed: 10, directory: '010'}\ndata: {path: /x/1:30}\n")
    assert load_config([str(tmp_path / "x.yaml"), "data.path=010"]).run.directory == "010-010"


@pytest.mark.parametrize("changes", [[], ["engine.compile=true", "engine.accumulation=2"], ["engine.stage=3"]])
def test_cuda_graphs_need_a_compiled_step(changes):
    with pytest.raises(ConfigError, match=r"engine\.cuda_graphs=True: expected false without engine\.compile=true"):
        load_config(["config/demo.yaml", "engine.cuda_graphs=true", *changes])


def test_offload_needs_a_stage():
    with pytest.raises(ConfigError, match=r"engine\.offload=True: expected false at engine\.stage=0"):
        load_config(["config/demo.yaml", "engine.offload=true", "engine.stage=0"])


def test_other_images_than_the_recipes_get_another_run_directory():
    assert load_config(["config/demo.yaml"]).run.directory == "runs/demo"
    assert load_config(["config/demo.yaml", "data.path=/my/images"]).run.directory == "runs/demo-images"
    assert load_config(["config/demo.yaml", "data.path=/my/images", "run.directory=x"]).run.directory == "x"
    assert load_config(["config/folder.yaml", "data.path=/my/images"]).run.directory == "runs/folder"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            {"zero_optimization": {"round_robin_gradients": True}},
            "round_robin_gradients=True: it makes Deep",
        ),
        ({"torch_autocast": {"enabled": True, "dtype": "float16"}}, "torch_autocast: set engine.precision"),
        ({"fp16": {"enabled": True}}, "fp16: set engine.precision"),
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage=2 is set by the recipe"),
        ({"gradient_clipping": 1.0}, "gradient_clipping=1.0 is set by the recipe"),
        ({"zero_optimization": 3}, "zero_optimization=3: expected a section"),
    ],
)
def test_deepspeed_options_that_break_the_engine_are_refused(extra, message):
    config = load_config(["config/demo.yaml", "engine.stage=0", "engine.precision=fp32"])
    config.engine.deepspeed = extra
    with pytest.raises(ConfigError) as caught:
        deepspeed_config(config, 1, "cpu", 10**6)
    assert message in str(caught.value)


def test_the_engine_does_not_clip_by_default_and_takes_other_deepspeed_options():
    config = load_config(["config/demo.yaml", "engine.stage=2", "engine.precision=bf16"])
    config.engine.deepspeed = {"prescale_gradients": True, "zero_optimization": {"reduce_scatter": False}}
    settings = deepspeed_config(config, 2, "cuda", 28_000_000)
    assert settings["gradient_clipping"] == 0.0 and settings["prescale_gradients"] is True
    zero = settings["zero_optimization"]
    assert (zero["stage"], zero["overlap_comm"], zero["reduce_bucket_size"]) == (2, True, 3_500_000)
    assert zero["reduce_scatter"] is False
