"""model.backbone=module:function calls the user's function with model.options, if the user's own settings name it."""

import sys

import pytest
import torch

from model.backbone import backbone_of, build_backbone
from model.libraries.names import is_own_code, split_own_code

CODE = """
from torch import nn

class Pooled(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.convolution = nn.Conv2d(3, width, 3)

    def forward(self, images):
        return self.convolution(images).mean((2, 3))

def pooled(width=8, bias=True):
    return Pooled(width)

def needs_width(width):
    return Pooled(width)

def a_list():
    return []

def maps():
    return nn.Conv2d(3, 4, 3)

def fails(width=2):
    raise KeyError("no such width")

def no_weights():
    return nn.Flatten()

def of_one_size():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))

number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a package `mynets`."""
    (tmp_path / "mynets").mkdir()
    (tmp_path / "mynets" / "__init__.py").write_text("")
    (tmp_path / "mynets" / "small.py").write_text(CODE)
    (tmp_path / "mynets" / "broken.py").write_text("import nowhere\n")
    (tmp_path / "mynets" / "wrong.py").write_text("def (:\n")
    (tmp_path / "mynets" / "stops.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "mynets"]:
        del sys.modules[name]


def own(name, sizes=(16, 8), **options):
    return backbone_of({"backbone": name, "options": options}, sizes, own_code=True)


def test_the_function_is_called_with_the_options_and_its_features_are_counted(folder):
    network = own("mynets.small:pooled", width=5)
    assert type(network).__name__ == "Pooled" and network.feature_dim == 5
    assert network.training and network(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
    with torch.device("meta"):  # where the size of a checkpoint is computed
        assert own("mynets.small:pooled", ()).feature_dim == 8


def test_a_file_of_the_current_folder_hides_no_module_of_swave(folder):
    (folder / "model").mkdir()
    (folder / "model" / "__init__.py").write_text("raise SystemExit\n")
    assert own("mynets.small:pooled").feature_dim == 8
    assert sys.path[-1] == str(folder)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mynet:pooled", {}, r"there is no module mynet in the current folder \(.*\) or PYTHONPATH"),
        ("mynets.smal:pooled", {}, r"there is no module mynets\.smal in "),
        ("mynets.small:poled", {}, r"mynets\.small \(.*small\.py\) has no function poled; nearest: pooled"),
        ("mynets.small:number", {}, "has no function number"),
        ("mynets.broken:f", {}, r"ModuleNotFoundError: No module named 'nowhere' \(.*broken\.py:1\)"),
        ("mynets.wrong:f", {}, r"SyntaxError: .* \(.*wrong\.py:1\)"),
        ("mynets.stops:f", {}, r"ZeroDivisionError: division by zero \(.*stops\.py:1\)"),
        ("mynets.small:pooled", {"widht": 3}, r"has no option 'widht' .*; the nearest option is width"),
        ("mynets.small:needs_width", {}, "missing a required argument: 'width'; give it as model.options"),
        ("mynets.small:fails", {}, r"KeyError: 'no such width' \(.*small\.py:\d+\)"),
        ("mynets.small:a_list", {}, "the function returned a list, not a torch.nn.Module"),
        ("mynets.small:no_weights", {}, "the network has no parameters that learn"),
        ("mynets.small:maps", {}, r"gives \[2, 4, \d+, \d+\] in place of features \[2, N\] for 2 images"),
        ("mynets.small:of_one_size", {}, "does not take crops of 8 pixels: "),
    ],
)
def test_a_mistake_is_one_line_with_its_place(folder, name, options, message):
    with pytest.raises(ValueError, match=f"^backbone {name}.*{message}") as caught:
        own(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"own_code": True}, {"sizes": [16]}, {"name": "resnet18"}])
def test_without_the_users_word_nothing_is_imported(folder, options):
    (folder / "mynets" / "small.py").write_text("open('ran', 'w')\n")
    model = {"backbone": "mynets.small:pooled", "options": options}
    with pytest.raises(ValueError, match="mynets"):
        backbone_of(model)
    with pytest.raises((ValueError, TypeError)):
        build_backbone(model["backbone"], **options)
    assert not (folder / "ran").exists() and "mynets.small" not in sys.modules


def test_only_an_end_that_names_a_function_or_a_folder_is_split_off():
    assert split_own_code("runs/a@b/step-1@nets.mine:build") == ("runs/a@b/step-1", "nets.mine:build")
    assert split_own_code("runs/a@teacher@nets:build") == ("runs/a@teacher", "nets:build")
    assert split_own_code("runs/a@transformers:/x@y/z") == ("runs/a", "transformers:/x@y/z")
    for word in ("runs/a", "runs/a@teacher", "x.pth@timm:resnet18", "x.pth@torchvision:resnet18", "x.pth@recipe.yaml"):
        assert split_own_code(word) == (word, "")
    assert not any(map(is_own_code, ("timm:resnet18", "torchvision:resnet18", "transformers:vit", "resnet50", "a-b:c")))
