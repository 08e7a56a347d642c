"""``medkit doctor --model``: which operations of a net vary on an accelerator, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medkit.check.scan import scan
from medkit.cli import main

X = torch.zeros(2, 1, 8, 8, 8)
NET = """import torch
from torch import nn
net = lambda: nn.Sequential(nn.Conv3d(1, 2, 3), nn.Upsample(scale_factor=2, mode="trilinear"))
good = lambda: nn.Sequential(nn.Conv3d(1, 2, 3), nn.Upsample(scale_factor=2))
word = lambda: "net"
needs = lambda width: nn.Conv3d(1, width, 3)


def raises():
    raise ValueError("no weights here\\nlook elsewhere")
"""


class Called(nn.Module):
    """A stem, and a function of what it gives."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, 2, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.stem(x))  # type: ignore[operator, no-any-return]


def sampled(x: Tensor) -> Tensor:
    theta = torch.eye(3, 4).repeat(len(x), 1, 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def unpooled(x: Tensor) -> Tensor:
    return F.max_unpool3d(*F.max_pool3d(x, 2, return_indices=True), 2)


def segmented(x: Tensor, reduction: str = "mean") -> Tensor:
    return F.cross_entropy(x, torch.zeros_like(x[:, 0]).long(), reduction=reduction)


@pytest.mark.parametrize(
    ("layer", "operation"),
    [
        (nn.Upsample(scale_factor=2, mode="trilinear"), "upsample_trilinear3d_backward"),
        (nn.AvgPool3d(2), "avg_pool3d_backward"),
        (nn.AdaptiveAvgPool3d(3), "_adaptive_avg_pool3d_backward"),
        (nn.ReflectionPad3d(1), "reflection_pad3d_backward"),
        (nn.FractionalMaxPool3d(2, output_size=3), "fractional_max_pool3d_backward"),
        (sampled, "grid_sampler_3d_backward"),
        (unpooled, "max_unpool3d"),
        (segmented, "nll_loss2d_forward"),
        (lambda x: x.cumsum(1), "cumsum"),
        (lambda x: x.median(1).values, "median"),
    ],
)
def test_what_varies_is_named_with_a_swap(layer: object, operation: str) -> None:
    found = [one for one in scan(Called(layer), X) if one.swap]
    assert operation in [one.op for one in found]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Upsample(scale_factor=2),
        nn.ConvTranspose3d(2, 2, 2, stride=2),
        nn.MaxPool3d(2),
        nn.ReplicationPad3d(1),
        nn.InstanceNorm3d(2),
        lambda x: x.mean(dim=(-3, -2, -1)),
        lambda x: segmented(x, "none").mean(),
        lambda x: F.cross_entropy(x.mean(dim=(2, 3, 4)), torch.zeros(len(x)).long()),
    ],
)
def test_the_swaps_themselves_do_not_vary(layer: object) -> None:
    assert [one for one in scan(Called(layer), X) if one.swap] == []


@pytest.mark.parametrize(("mode", "varies"), [("max", True), ("mean", False)])
def test_an_embedding_bag_varies_where_it_takes_the_maximum(mode: str, varies: bool) -> None:
    found = scan(nn.EmbeddingBag(5, 2, mode=mode), torch.zeros(2, 3).long())
    assert bool(found) is varies


def test_a_swap_of_cross_entropy_gives_the_same_loss() -> None:
    x = torch.randn(2, 3, 4, 4, 4)
    torch.testing.assert_close(segmented(x, "none").mean(), segmented(x))


def test_the_module_and_the_line_are_named() -> None:
    (found,) = [one for one in scan(Called(nn.AvgPool3d(2)), X) if one.swap]
    assert found.module == "function (AvgPool3d)"
    assert "test_scan.py" in found.line
    assert "return self.function(self.stem(x))" in found.line


def test_a_gradient_that_nobody_wants_is_no_operation() -> None:
    found = scan(nn.Sequential(nn.ReflectionPad3d(1), nn.Conv3d(1, 1, 3)), X)
    assert "reflection_pad3d_backward" not in [one.op for one in found]


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scan(model, X)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scanned_nets.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("nets")
def test_the_command_says_what_varies_and_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--model", "scanned_nets:net", "--input", "1,1,8,8,8"]) == 1
    out = capsys.readouterr().out
    assert "VARIES  upsample_trilinear3d_backward" in out
    assert "in 1 (Upsample)" in out
    assert "mode='nearest'" in out
    assert main(["doctor", "--model", "scanned_nets:good", "--input", "1,1,8,8,8"]) == 0


@pytest.mark.usefixtures("nets")
@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        ("scanned_nets:good", "", "must say what it is called with, and it has no example_input"),
        (
            "scanned_nets:good",
            "1,x",
            "--input must be sizes above 0, as in 1,1,64,64,64, got '1,x'",
        ),
        ("scanned_nets:word", "1,1", "must give a torch.nn.Module, got a str. Write a function"),
        ("scanned_nets:needs", "1,1", "needs can't be called without arguments and give a net: T"),
        ("scanned_nets:raises", "1,1", "give a net: ValueError: no weights here\n"),
        (
            "scanned_nets:good",
            "1,2,8,8,8",
            "good can't be called with (1, 2, 8, 8, 8), forward and back: RuntimeError: ",
        ),
        ("scanned_nets:goo", "1,1", "Did you mean 'good'?"),
    ],
)
def test_what_cannot_be_scanned_is_wrong_usage(
    spec: str, shape: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--model", spec, "--input", shape]) == 2
    assert message in capsys.readouterr().err
