from __future__ import annotations

import resource
from collections.abc import Callable
from functools import partial

import pytest
import torch
from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam, Occlusion
from torch import Tensor, nn

from medkit import keyed
from medkit.models.ct_net import CandidateNet
from medkit.saliency.cam import attention, grad_cam
from medkit.saliency.occlusion import occlusion
from medkit.saliency.volume_maps import Interrupted, VolumeMaps
from medkit.saliency.volume_net import VolumeNet
from medkit.saliency.volumes import gradient_shap, integrated_gradients, smooth_gradients

SIDE = 8
Method = Callable[[VolumeNet, Tensor], VolumeMaps]
METHODS: dict[str, Method] = {
    "integrated gradients": integrated_gradients,
    "GradientSHAP": partial(gradient_shap, draws=4, noise_hu=20.0),
    "SmoothGrad": partial(smooth_gradients, draws=3),
    "occlusion": partial(occlusion, side=4, stride=4),
    "Grad-CAM": grad_cam,
}


def window(hu: Tensor) -> Tensor:
    return ((hu + 1000) / 1400).clamp(0, 1)


def thousands(hu: Tensor) -> Tensor:
    """A window without an edge, in which air is not 0."""
    return hu / 1000


@pytest.fixture(scope="module")
def volumes() -> Tensor:
    noise = torch.randn(3, 1, SIDE, SIDE, SIDE, generator=keyed.torch_generator(0, "volumes"))
    return -850 + 250 * noise


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with keyed.globals_keyed(0, "init"):
        return nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 4, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 1),
        )  # fmt: skip


class Linear(nn.Module):
    """Weights times voxels."""

    def __init__(self) -> None:
        super().__init__()
        draws = keyed.torch_generator(0, "linear")
        self.weight = nn.Parameter(torch.randn(SIDE, SIDE, SIDE, generator=draws))

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, 0] * self.weight).sum((1, 2, 3)) + 0.3


def test_a_linear_net_shares_out_weight_times_distance_from_air(volumes: Tensor) -> None:
    of = VolumeNet(Linear(), thousands)
    got = integrated_gradients(of, volumes)
    exact = of.net.weight.detach() * (volumes[:, 0] + 1000) / 1000
    torch.testing.assert_close(got.values, exact)
    assert got.delta is not None
    assert got.delta.abs().max() < 1e-4
    torch.testing.assert_close(gradient_shap(of, volumes, draws=2).values, exact)


def test_a_linear_net_loses_the_blocks_share_to_occlusion(volumes: Tensor) -> None:
    of = VolumeNet(Linear(), thousands)
    got = occlusion(of, volumes, side=4, stride=4)
    share = of.net.weight.detach() * (volumes[:, 0] + 1000) / 1000
    sums = share.view(3, 2, 4, 2, 4, 2, 4).sum((2, 4, 6))
    exact = sums.repeat_interleave(4, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(got.values, exact, atol=1e-4, rtol=1e-4)


def test_a_linear_nets_smoothed_gradient_is_its_weights(volumes: Tensor) -> None:
    of = VolumeNet(Linear(), thousands)
    got = smooth_gradients(of, volumes, draws=3)
    torch.testing.assert_close(got.values, of.net.weight.detach().expand_as(got.values))


def test_the_baseline_is_air_before_the_window_and_not_zero_after_it(volumes: Tensor) -> None:
    of = VolumeNet(Linear(), thousands)
    empty = torch.full_like(volumes, -1000.0)
    for method in ("integrated gradients", "occlusion"):
        assert METHODS[method](of, empty).values.abs().max() < 1e-6
    water = VolumeNet(of.net, thousands, baseline_hu=0.0)
    torch.testing.assert_close(
        integrated_gradients(water, volumes).values, of.net.weight.detach() * volumes[:, 0] / 1000
    )


def test_grad_cam_of_a_hand_made_net_is_its_weighted_channels() -> None:
    conv = nn.Conv3d(1, 2, 1, bias=False)
    conv.weight.data = torch.tensor([2.0, -1.0]).view(2, 1, 1, 1, 1)
    head = nn.Linear(2, 1, bias=False)
    head.weight.data = torch.tensor([[3.0, 1.0]])
    net = nn.Sequential(conv, nn.AdaptiveAvgPool3d(1), nn.Flatten(), head)
    hu = torch.arange(1.0, 9.0).view(1, 1, 2, 2, 2) * 100
    # channels are 2x and -x; their mean gradients 3/8 and 1/8: (6 - 1)/8 x
    got = grad_cam(VolumeNet(net, thousands), hu)
    torch.testing.assert_close(got.values[0], hu[0, 0] / 1000 * 5 / 8)
    assert not got.signed


def test_integrated_gradients_are_captums(net: nn.Module, volumes: Tensor) -> None:
    of = VolumeNet(net, window)
    got = integrated_gradients(of, volumes)
    air = window(torch.full_like(volumes[:1], -1000.0))
    reference = IntegratedGradients(net).attribute(window(volumes), air, target=0)[:, 0]
    for one, other in zip(got.values, reference, strict=True):
        assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1] > 0.998
    assert got.residual().max() <= 0.003


@pytest.mark.parametrize(("side", "stride"), [(4, 4), (4, 2), (3, 2), (5, 4)])
def test_occlusion_is_captums(net: nn.Module, volumes: Tensor, side: int, stride: int) -> None:
    of = VolumeNet(net, window, at_once=5)
    air = window(torch.full_like(volumes[:1], -1000.0))
    with torch.no_grad():
        reference = Occlusion(net).attribute(
            window(volumes), (1, side, side, side), (1, stride, stride, stride), air, target=0
        )
    got = occlusion(of, volumes, side=side, stride=stride)
    torch.testing.assert_close(got.values, reference[:, 0], atol=1e-6, rtol=1e-4)


def test_refined_voxels_have_the_value_of_the_whole_map(net: nn.Module, volumes: Tensor) -> None:
    of = VolumeNet(net, window)
    whole, coarse = (occlusion(of, volumes, side=4, stride=step).values for step in (2, 4))
    got = occlusion(of, volumes, side=4, stride=2, refine=0.1).values
    same = torch.isclose(got, whole, atol=1e-6)
    assert (same | torch.isclose(got, coarse, atol=1e-6)).all()
    assert 0.1 <= same.float().mean() < 1
    assert same.flatten(1).gather(1, coarse.abs().flatten(1).argmax(1, keepdim=True)).all()


def test_grad_cam_is_captums(volumes: Tensor) -> None:
    with keyed.globals_keyed(0, "init"):
        net = CandidateNet().eval()
    hu = volumes.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    got = grad_cam(VolumeNet(net, window), hu).values
    cells = LayerGradCam(net, net.features).attribute(window(hu), 0, relu_attributions=True)
    reference = LayerAttribution.interpolate(cells, (16, 16, 16), "trilinear")[:, 0]
    torch.testing.assert_close(got, reference.detach())


def test_shares_add_up_and_more_nodes_follow_a_large_residual(volumes: Tensor) -> None:
    class Bent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x.sum((1, 2, 3, 4)) - 5).square()

    got = integrated_gradients(VolumeNet(Bent(), window), volumes, nodes=2, tolerance=1e-3)
    assert got.nodes is not None
    assert got.nodes.max() > 2
    assert got.residual().max() <= 1e-3


def test_blocks_hold_means_and_shares_still_add_up(net: nn.Module, volumes: Tensor) -> None:
    maps = integrated_gradients(VolumeNet(net, window), volumes)
    blocks = maps.in_blocks(3)  # the last block along an axis is 2 wide
    torch.testing.assert_close(blocks.values.sum((1, 2, 3)), maps.values.sum((1, 2, 3)))
    torch.testing.assert_close(blocks.values[0, 7, 7, 7], maps.values[0, 6:, 6:, 6:].mean())
    assert blocks.method == "integrated gradients in blocks of 3 voxels"


def test_some_of_the_maps_keep_their_residual_and_verdict(net: nn.Module, volumes: Tensor) -> None:
    maps = integrated_gradients(VolumeNet(net, window), volumes)
    for rows in (range(1, 3), torch.arange(len(volumes)) % 3 > 0):
        some = maps.take(rows)
        assert torch.equal(some.values, maps.values[1:3])
        assert torch.equal(some.residual(), maps.residual()[1:3])
        assert (some.method, some.verdict) == (maps.method, maps.verdict)


@pytest.mark.parametrize("name", METHODS)
def test_maps_do_not_hang_on_the_global_generator_or_their_neighbours(
    net: nn.Module, volumes: Tensor, name: str
) -> None:
    of = VolumeNet(net, window)
    with keyed.globals_keyed(1, "elsewhere"):
        one = METHODS[name](of, volumes).values
    with keyed.globals_keyed(2, "elsewhere"):
        state = torch.default_generator.get_state()
        again = METHODS[name](of, volumes).values
        assert torch.equal(torch.default_generator.get_state(), state)
    assert torch.equal(one, again)
    torch.testing.assert_close(METHODS[name](of, volumes[:2]).values, one[:2])
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("name", ["GradientSHAP", "SmoothGrad"])
def test_another_seed_draws_otherwise(net: nn.Module, volumes: Tensor, name: str) -> None:
    of = VolumeNet(net, window)
    one, other = (METHODS[name](of, volumes, seed=seed).values for seed in (0, 1))  # type: ignore[call-arg]
    assert not torch.equal(one, other)


def test_gradient_shap_of_many_draws_nears_integrated_gradients(
    net: nn.Module, volumes: Tensor
) -> None:
    of = VolumeNet(net, window)
    exact = integrated_gradients(of, volumes).values
    torch.testing.assert_close(
        gradient_shap(of, volumes, draws=64).values, exact, atol=float(0.2 * exact.std()), rtol=0.1
    )
    references = volumes[1:].clone()
    maps = gradient_shap(of, volumes[:1], references_hu=references, draws=32)
    change = of.ask(volumes[:1]) - of.ask(references).mean()
    torch.testing.assert_close(maps.values.sum((1, 2, 3)) - maps.delta, change)


def test_volumes_may_be_integers_and_the_mode_is_put_back(net: nn.Module, volumes: Tensor) -> None:
    net.train()
    whole = volumes.round()
    for method in METHODS.values():
        torch.testing.assert_close(
            method(VolumeNet(net, window), whole.short().numpy()).values,
            method(VolumeNet(net, window), whole).values,
        )
    assert net.training
    net.eval()


@pytest.mark.parametrize("name", METHODS)
def test_no_forward_has_more_volumes_than_stated(
    net: nn.Module, volumes: Tensor, name: str
) -> None:
    most: list[int] = []
    hook = net.register_forward_hook(lambda _, given, __: most.append(len(given[0])))
    METHODS[name](VolumeNet(net, window, at_once=3), volumes)
    hook.remove()
    assert max(most) <= 3


def test_memory_does_not_grow_with_the_number_of_volumes(net: nn.Module) -> None:
    of = VolumeNet(net, window, at_once=2)
    hu = torch.full((1, 1, 32, 32, 32), -500.0)

    def peak_kib(count: int) -> int:
        integrated_gradients(of, hu.expand(count, -1, -1, -1, -1), nodes=2, tolerance=9)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    few = peak_kib(4)
    # 40 volumes of maps are 5 MiB; their activations and gradients at once would be 250 MiB
    assert peak_kib(40) - few < 40 * 1024


def test_ctrl_c_keeps_what_is_done(net: nn.Module, volumes: Tensor) -> None:
    calls: list[int] = []

    def stop(*_: object) -> None:
        calls.append(1)
        if len(calls) == 4:  # two forwards a volume
            raise KeyboardInterrupt

    of = VolumeNet(net, window, at_once=14)
    whole = integrated_gradients(of, volumes, tolerance=9).values
    hook = net.register_forward_hook(stop)
    with pytest.raises(Interrupted, match="after 1 volumes") as caught:
        integrated_gradients(of, volumes, tolerance=9)
    hook.remove()
    assert isinstance(caught.value, KeyboardInterrupt)
    torch.testing.assert_close(caught.value.maps.values, whole[:1])


class TinyViT(nn.Module):
    """The parts of MONAI's ViT that attention is read from, with attention set by hand."""

    def __init__(self, rows: list[Tensor]) -> None:
        super().__init__()
        self.patch_embedding = nn.Module()
        self.patch_embedding.patch_embeddings = nn.Conv3d(1, 1, 4, stride=4)
        self.patch_embedding.n_patches = 8
        self.blocks = nn.ModuleList(nn.Module() for _ in rows)
        self.rows = rows
        for block in self.blocks:
            block.attn = nn.Module()
            block.attn.att_mat, block.attn.save_attn = torch.Tensor(), False

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        for block, row in zip(self.blocks, self.rows, strict=True):
            assert block.attn.save_attn
            block.attn.att_mat = row.expand(len(x), 2, *row.shape)
        return x.mean((2, 3, 4)), []


def test_rollout_multiplies_attention_with_half_of_the_residual_path() -> None:
    eye, even = torch.eye(8), torch.full((8, 8), 1 / 8)
    first = torch.zeros(8, 8)
    first[:, 0] = 1  # all tokens look at the first
    net = TinyViT([first, even])
    hu = torch.full((1, 1, 8, 8, 8), -500.0)
    exact = ((even + eye) / 2 @ ((first + eye) / 2)).mean(0).view(2, 2, 2)
    got = attention(VolumeNet(net, thousands), hu).values[0]
    torch.testing.assert_close(got[::7, ::7, ::7], exact)  # corners are the cells' own values
    last = attention(VolumeNet(net, thousands), hu, way="last").values[0]
    torch.testing.assert_close(last, torch.full_like(last, 1 / 8))
    assert not net.blocks[0].attn.save_attn
    assert net.blocks[0].attn.att_mat.numel() == 0


@pytest.mark.parametrize("proj_type", ["conv", "perceptron"])
def test_monais_vit_can_be_looked_into(proj_type: str) -> None:
    from monai.networks.nets.vit import ViT

    net = ViT(
        1, 16, 8, hidden_size=12, mlp_dim=12, num_layers=2, num_heads=2, proj_type=proj_type,
        classification=True, post_activation="none",
    )  # fmt: skip
    hu = torch.linspace(-1000, 400, 2 * 16**3).view(2, 1, 16, 16, 16)
    got = attention(VolumeNet(net, window, target=1), hu)
    assert got.values.shape == (2, 16, 16, 16)
    assert (got.values > 0).all()
    torch.testing.assert_close(got.values[:, ::15, ::15, ::15].sum((1, 2, 3)), torch.ones(2))
    assert "not an attribution" in (attention.__doc__ or "")


def test_what_cannot_be_explained_is_refused(net: nn.Module, volumes: Tensor) -> None:
    of = VolumeNet(net, window)
    with pytest.raises(ValueError, match=r"\(B, 1, H, W, D\) in HU, got shape \(8, 8, 8\)"):
        integrated_gradients(of, volumes[0, 0])
    with pytest.raises(ValueError, match=r"not windowed yet; volumes 0 to .* VolumeNet\(net, wind"):
        integrated_gradients(of, window(volumes))
    with pytest.raises(ValueError, match="values up to nan"):
        integrated_gradients(of, volumes * torch.nan)
    with pytest.raises(ValueError, match="voxel by voxel; got"):
        integrated_gradients(VolumeNet(net, lambda hu: hu[:, 0]), volumes)
    two = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**3, 2))
    with pytest.raises(ValueError, match=r"one of the net's 2 logits a volume, got None"):
        integrated_gradients(VolumeNet(two, window), volumes)
    with pytest.raises(ValueError, match=r"nodes must be from 1 to most_nodes.* got nodes=0"):
        integrated_gradients(of, volumes, nodes=0)
    with pytest.raises(ValueError, match=r"draws must be at least 1.* got 0"):
        gradient_shap(of, volumes, draws=0)
    with pytest.raises(ValueError, match=r"references_hu must be .* got \(2, 1, 8, 8\)"):
        gradient_shap(of, volumes, references_hu=volumes[:2, ..., 0])
    with pytest.raises(ValueError, match=r"<= 8 voxels; got side=9, stride=3"):
        occlusion(of, volumes, side=9)
    with pytest.raises(ValueError, match=r"share of the voxels.* got 0"):
        occlusion(of, volumes, side=4, stride=2, refine=0)
    with pytest.raises(ValueError, match="layer must be a module of the net, got 'layer4'"):
        grad_cam(of, volumes, layer="layer4")
    with pytest.raises(ValueError, match=r"Sequential has none on volumes of \(8, 8, 8\)"):
        grad_cam(VolumeNet(two, window, target=0), volumes)
    with pytest.raises(ValueError, match="found 0 blocks in Sequential"):
        attention(of, volumes)
    with pytest.raises(ValueError, match="way must be one of"):
        attention(of, volumes, way="flow")
    with pytest.raises(ValueError, match="Grad-CAM does not"):
        grad_cam(of, volumes).residual()


@pytest.mark.parametrize("shape", [(16, 16, 16), (1, 16, 16, 16), (1, 2, 16, 16, 16)])
def test_occlusion_says_which_axes_are_missing(net: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"volumes must be \(B, 1, H, W, D\) in HU, got shape"):
        occlusion(VolumeNet(net, lambda hu: hu / 1000), torch.full(shape, -500.0))
