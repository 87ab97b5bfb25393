"""The 40 architectures of `coverage.py`: timm's, torchvision's and four of our own, with fixed random weights.

torch, timm and torchvision are imported where a network is built; the list itself needs none of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.model import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn


@dataclass(frozen=True)
class Architecture:
    """One network: what its library calls it, the shape of one sample of its input, and settings other than usual.

    `top` is the number of different tokens where the input is integers, else 0. `heads` names the layers that give
    the outputs, where the library has no `get_classifier`: Torch-Pruning must be told to leave them.
    """

    name: str
    family: str
    library: str
    builder: str
    shape: tuple[int, ...] = (3, 128, 128)
    settings: Mapping[str, Any] = field(default_factory=dict)
    top: int = 0
    heads: tuple[str, ...] = ()

    @property
    def spec(self) -> TensorSpec:
        """Its only input."""
        name = "tokens" if self.top else "signal" if len(self.shape) == 2 else "image"
        return TensorSpec(name, "int64" if self.top else "float32", ("batch", *self.shape))

    def build(self, seed: int = 0) -> nn.Module:
        """The network in evaluation mode; the same weights for the same seed.

        Raises:
            ImportError: the library is not installed.
        """
        import torch

        torch.manual_seed(seed)
        module: nn.Module = BUILDERS[self.library](self.builder, dict(self.settings))
        settle(module, torch.from_numpy(self.samples(8, seed)))
        return module.eval()

    def outputs_of(self, module: nn.Module) -> list[nn.Module]:
        """The layers of `module` whose outputs are the network's."""
        if self.heads:
            return [module.get_submodule(name) for name in self.heads]
        found: Any = module.get_classifier()  # type: ignore[operator]
        return list(found) if isinstance(found, tuple) else [found]

    def samples(self, count: int, seed: int = 0) -> npt.NDArray[np.generic]:
        """Random inputs `[count, *shape]`: normal, or tokens below `top`."""
        import numpy as np

        rng = np.random.default_rng(seed)
        if self.top:
            return rng.integers(0, self.top, (count, *self.shape), dtype=np.int64)
        return rng.standard_normal((count, *self.shape)).astype(np.float32)


def settle(module: nn.Module, samples: Any) -> None:
    """Make a fresh network one whose every part counts, in place.

    As they come, many residual branches are multiplied by 0 or 1e-6, biases are 0 and normalisations do nothing: a
    network that loses the wrong channels there would answer the same. So whatever is constant becomes random, and
    BatchNorm gets the statistics of `samples`.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    with torch.no_grad():
        for parameter in module.parameters():
            first = float(parameter.flatten()[0])
            if not bool((parameter == first).all()):
                continue
            if abs(first) >= 0.5:
                parameter.mul_(torch.empty_like(parameter).uniform_(0.5, 1.5))
            elif parameter.numel() == 1:
                parameter.fill_(0.3)
            else:
                parameter.normal_(0, 0.1)
        norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
        momenta = [layer.momentum for layer in norms]
        module.eval()
        for layer in norms:
            layer.momentum = None  # statistics of all that it sees
            layer.train()
        if norms:
            module(samples)
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.momentum = momentum
        module.eval()


def find_libraries() -> None:
    """Make timm and torchvision importable: from the environment's folder `timm`, if they are there.

    They lie apart because torchvision's compiled part loads only beside the build of torch that it was made with, and
    other packages (transformers) fail where torchvision is installed and does not load. The networks need none of its
    operators, but their names are asked for when it is imported: so they are defined, without anything behind them.

    Raises:
        ImportError: they are not there.
    """
    folder = str(Path(sys.prefix) / "timm")
    if Path(folder).is_dir() and folder not in sys.path:
        sys.path.append(folder)
    import torch

    global _library
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # no such operator: the compiled part did not load
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for name in OPERATORS:
            _library.define(f"{name}(Tensor x) -> Tensor")


_library: Any = None

OPERATORS = (
    "nms", "qnms", "roi_align", "_roi_align_backward", "qroi_align", "roi_pool", "_roi_pool_backward", "ps_roi_align",
    "_ps_roi_align_backward", "ps_roi_pool", "_ps_roi_pool_backward", "deform_conv2d", "_deform_conv2d_backward",
)  # fmt: skip
"""Those that torchvision registers shapes for when it is imported."""


def _timm(name: str, settings: dict[str, Any]) -> nn.Module:
    find_libraries()
    import timm

    module: nn.Module = timm.create_model(name, pretrained=False, **settings)
    return module


def _torchvision(name: str, settings: dict[str, Any]) -> nn.Module:
    find_libraries()
    import torchvision

    module: nn.Module = torchvision.models.get_model(name, weights=None, **settings)
    return module


def _own(name: str, settings: dict[str, Any]) -> nn.Module:
    import own_networks

    module: nn.Module = getattr(own_networks, name)(**settings)
    return module


BUILDERS: Mapping[str, Callable[[str, dict[str, Any]], nn.Module]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "own": _own,
}

BIG, SMALL = (3, 224, 224), (3, 64, 64)

ARCHITECTURES = (
    Architecture("resnet50", "ResNet", "timm", "resnet50"),
    Architecture("seresnet18", "SE-ResNet", "timm", "seresnet18"),
    Architecture("resnext50_32x4d", "ResNeXt", "timm", "resnext50_32x4d"),
    Architecture("regnety_004", "RegNet", "timm", "regnety_004"),
    Architecture("densenet121", "DenseNet", "timm", "densenet121"),
    Architecture("mobilenetv1_100", "MobileNet v1", "timm", "mobilenetv1_100"),
    Architecture("mobilenetv2_100", "MobileNet v2", "timm", "mobilenetv2_100"),
    Architecture("mobilenetv3_small", "MobileNet v3", "timm", "mobilenetv3_small_100"),
    Architecture("mobilenetv4_conv_small", "MobileNet v4", "timm", "mobilenetv4_conv_small"),
    Architecture("efficientnet_b0", "EfficientNet", "timm", "efficientnet_b0"),
    Architecture("efficientnet_lite0", "EfficientNet-Lite", "timm", "efficientnet_lite0"),
    Architecture("ghostnet_100", "GhostNet", "timm", "ghostnet_100"),
    Architecture("shufflenet_v2_x1_0", "ShuffleNet", "torchvision", "shufflenet_v2_x1_0", heads=("fc",)),
    Architecture("mnasnet_100", "MNASNet", "timm", "mnasnet_100"),
    Architecture("squeezenet1_1", "SqueezeNet", "torchvision", "squeezenet1_1", heads=("classifier.1",)),
    Architecture("inception_v3", "Inception", "timm", "inception_v3"),
    Architecture("vgg11_bn", "VGG", "timm", "vgg11_bn"),
    Architecture("convnext_atto", "ConvNeXt", "timm", "convnext_atto"),
    Architecture("nf_resnet50", "NF-ResNet", "timm", "nf_resnet50"),
    Architecture("eca_nfnet_l0", "NFNet", "timm", "eca_nfnet_l0"),
    Architecture("repvgg_a0", "RepVGG", "timm", "repvgg_a0"),
    Architecture("hrnet_w18_small", "HRNet", "timm", "hrnet_w18_small"),
    Architecture("dla34", "DLA", "timm", "dla34"),
    Architecture("cspresnet50", "CSPNet", "timm", "cspresnet50"),
    Architecture("cspdarknet53", "CSPNet", "timm", "cspdarknet53"),
    Architecture("vit_tiny", "ViT", "timm", "vit_tiny_patch16_224", BIG),
    Architecture("deit_tiny", "DeiT", "timm", "deit_tiny_distilled_patch16_224", BIG),
    Architecture("swin_tiny", "Swin", "timm", "swin_tiny_patch4_window7_224", BIG),
    Architecture("maxvit_nano", "MaxViT", "timm", "maxvit_nano_rw_256", settings={"img_size": 128}),
    Architecture("mobilevit_xxs", "MobileViT", "timm", "mobilevit_xxs"),
    Architecture("levit_128s", "LeViT", "timm", "levit_128s", BIG),
    Architecture("efficientformer_l1", "EfficientFormer", "timm", "efficientformer_l1", BIG),
    Architecture("fastvit_t8", "FastViT", "timm", "fastvit_t8"),
    Architecture("mixer_s32", "MLP-Mixer", "timm", "mixer_s32_224", BIG),
    Architecture("edgenext_xx_small", "EdgeNeXt", "timm", "edgenext_xx_small"),
    Architecture("poolformer_s12", "PoolFormer", "timm", "poolformer_s12"),
    Architecture("unet", "U-Net", "own", "UNet", SMALL, heads=("head",)),
    Architecture("ssd", "SSD", "own", "Detector", (3, 96, 96), heads=("boxes", "scores")),
    Architecture("audio", "1-D audio", "own", "Audio", (1, 4000), heads=("head",)),
    Architecture("gpt", "GPT", "own", "Gpt", (32,), top=256, heads=("head",)),
)  # fmt: skip
"""The list. What Torch-Pruning 1.6.1 was seen to fail on, out of the box, is all in it."""

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
