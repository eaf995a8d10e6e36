"""Keys under engine.deepspeed: what DeepSpeed does not know, has removed or does not take is one line."""

import copy

import pytest

from config.recipe import ConfigError, load_config
from training.auto import check_before_data, fit
from training.deepspeed_engine import deepspeed_config
from training.distributed import Cluster


def settings_of(extra, stage=1, directory="runs/demo"):
    directory = f"run.directory={directory}"
    config = load_config(["config/demo.yaml", directory, f"engine.stage={stage}", "engine.precision=fp32"])
    config.engine.deepspeed = extra
    return deepspeed_config(config, 2, "cpu", 10**6)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"gradient_clippping": 1}, "gradient_clippping: DeepSpeed 0.19.8 has no such key; the nearest is gradient_cl"),
        ({"zero_optimizaton": {"stage": 3}}, "zero_optimizaton: .* the nearest is zero_optimization"),
        ({"prescale_gradient": True}, "prescale_gradient: .* the nearest is prescale_gradients"),
        ({"flops_profiler": {"enabledd": True}}, r"flops_profiler\.enabledd: .* is flops_profiler\.enabled"),
        ({"checkpoint": {"parallel_write": {"stage": 1}}}, r"parallel_write\.stage: .* is .*\.pipeline_stage"),
        ({"activation_checkpointing": {"profil": True}}, r"checkpointing\.profil: .* is .*\.profile"),
        ({"aio": {"block_sizes": 1}}, r"aio\.block_sizes: .* the nearest is aio\.block_size"),
        ({"data_types": {"grad_accum_type": "fp32"}}, r"the nearest is data_types\.grad_accum_dtype"),
        ({"zero_optimization": {"overlap_com": True}}, r"zero_optimization\.overlap_com: .*\.overlap_comm"),
        ({"tensorboard": {"enable": True}}, r"engine\.deepspeed\.tensorboard\.enable: .*tensorboard\.enabled"),
        ({"timers": {"throughput": {"enabledd": True}}}, r"timers\.throughput\.enabledd|timers\.enabledd"),
        ({"compile": {"enabled": True}}, r"compile\.enabled: .* the nearest is compile\.(?!enabled)"),
        ({1: 2}, r"engine\.deepspeed\.1: DeepSpeed"),
    ],
)
def test_a_key_that_deepspeed_does_not_know_is_refused_with_the_nearest(extra, message):
    with pytest.raises(ConfigError, match=message) as caught:
        settings_of(extra)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


REMOVED = ("elasticity", "nebula", "compression_training", "eigenvalue", "sparse_attention", "curriculum_learning")


@pytest.mark.parametrize("extra", [*({name: {"enabled": True}} for name in REMOVED), {"graph_harvesting": True}])
def test_a_section_that_deepspeed_has_removed_is_refused_with_its_reason(extra):
    (name,) = extra
    with pytest.raises(ConfigError, match=f"engine.deepspeed.{name}=.*: DeepSpeed refuses it .*removed") as caught:
        settings_of(extra)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"prescale_gradients": "maybe"}, "prescale_gradients=maybe: expected true or false"),
        ({"gradient_predivide_factor": "two"}, "gradient_predivide_factor=two: expected a number"),
        ({"flops_profiler": {"enabled": "on"}}, r"flops_profiler\.enabled=on: expected true or false"),
        ({"flops_profiler": True}, "flops_profiler=True: DeepSpeed refuses it"),
        ({"zero_optimization": {"sub_group_size": -1}}, r"sub_group_size=-1: Input should be greater than"),
        ({"zero_optimization": {"mics_shard_size": 2}}, "zero_optimization=.*: DeepSpeed refuses it .*MiCS"),
        ({"communication_data_type": "int4"}, "communication_data_type=int4: DeepSpeed refuses it"),
        ({"pipeline": {"stages": 2}}, "pipeline=.*: swave has no pipeline stages"),
        ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel=.*: swave splits no layer over processes"),
        ({"steps_per_print": 0}, "steps_per_print=0: expected more than 0"),
        ({"gradient_predivide_factor": 0}, "gradient_predivide_factor=0: expected more than 0"),
        ({"data_types": {"grad_accum_dtype": "fp64"}}, "grad_accum_dtype=fp64: expected fp32, bf16 or fp16"),
    ],
)
def test_a_value_that_deepspeed_does_not_take_is_refused(extra, message):
    with pytest.raises(ConfigError, match=message) as caught:
        settings_of(extra)
    assert "\n" not in str(caught.value)


GOOD = {
    "prescale_gradients": True,
    "gradient_predivide_factor": 2.0,
    "communication_data_type": "fp32",
    "memory_breakdown": True,
    "steps_per_print": 100,
    "dump_state": False,
    "disable_allgather": False,
    "dataloader_drop_last": True,
    "log_level": "info",
    "zero_optimization": {"reduce_scatter": False, "sub_group_size": 1000, "offload_param": {"device": "none"}},
    "flops_profiler": {"enabled": False, "profile_step": 2, "module_depth": -1, "output_file": "x"},
    "activation_checkpointing": {"partition_activations": True, "number_checkpoints": 2},
    "comms_logger": {"enabled": True, "verbose": False, "prof_all": True, "debug": False},
    "tensorboard": {"enabled": False, "job_name": "x"},
    "wandb": {"enabled": False, "project": "x"},
    "checkpoint": {"tag_validation": "Ignore", "load_universal": False, "parallel_write": {"pipeline_stage": True}},
    "data_types": {"grad_accum_dtype": "fp32"},
    "aio": {"block_size": 1, "queue_depth": 8, "single_submit": False},
    "compile": {"deepcompile": False},
    "timers": {"throughput": {"enabled": True, "synchronized": False}},
    "hybrid_engine": {"enabled": False},
    "autotuning": {"enabled": False, "fast": True},
}


def test_what_deepspeed_knows_passes_alone_and_together():
    for key, value in GOOD.items():
        settings = settings_of({key: value})
        assert settings[key] == value or settings[key].items() >= value.items(), key
    assert settings_of(GOOD).items() >= {key: v for key, v in GOOD.items() if not isinstance(v, dict)}.items()


OUTPUTS = [
    ("tensorboard", {}, {"output_path": "/runs/a/deepspeed", "job_name": "tensorboard"}),
    ("tensorboard", {"output_path": ""}, {"output_path": "/runs/a/deepspeed", "job_name": "tensorboard"}),
    ("tensorboard", {"output_path": "/mine"}, {"output_path": "/mine", "job_name": "tensorboard"}),
    ("csv_monitor", {"job_name": "me"}, {"output_path": "/runs/a/deepspeed", "job_name": "me"}),
    ("flops_profiler", {}, {"output_file": "/runs/a/deepspeed/flops_profile.txt"}),
    ("flops_profiler", {"output_file": "mine.txt"}, {"output_file": "mine.txt"}),
]


@pytest.mark.parametrize(("section", "given", "paths"), OUTPUTS)
def test_what_deepspeed_writes_goes_below_the_run_unless_a_path_is_given(section, given, paths):
    extra = {section: {"enabled": True} | given}
    assert settings_of(extra, directory="/runs/a")[section] == {"enabled": True} | paths


def test_a_wrong_key_is_found_before_processes_connect():
    config = load_config(["config/demo.yaml", "run.batch_size=8", "engine.deepspeed.gradient_clippping=1"])
    with pytest.raises(ConfigError, match="gradient_clippping"):
        fit(config, 1000, Cluster())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("engine.deepspeed.gradient_clippping=1", "gradient_clippping"),
        ("engine.precision=fp16", "needs a GPU"),
        ("run.batch_size=9", "does not split"),
        ("model.backbone=json:lods", "json .* has no function lods; nearest: loads"),
        ("crops.custom=json:lods", "crops.custom=json:lods: .*nearest: loads"),
        ("model.options.stm=small", "backbone resnet has no option 'stm'"),
        ("model.options.base_width=-8", "base_width=-8: expected"),
        (
            "model.backbone=vit_tiny_patch16_224 model.options.depht=4",
            "vit_tiny_.* unexpected keyword argument 'depht'",
        ),
        ("model.backbone=torchvision:resnet18 model.options.widht=4", "resnet18 has no option 'widht'"),
    ],
)
def test_what_needs_no_images_is_refused_before_they_are_read(setting, message):
    config = load_config(["config/demo.yaml", "run.batch_size=8", *setting.split()])
    before = copy.deepcopy(config)
    with pytest.raises(ValueError, match=message):
        check_before_data(config, Cluster(0, 2, 0, 2))
    assert config == before
