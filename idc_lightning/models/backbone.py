"""torchvision's convolutional classifiers without their classifier, and their pretrained weights.

A backbone maps images of any size to a map of features, so that one net serves single patches and
crops of tissue alike.
"""

import difflib
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models

from idc_lightning.errors import IDCError
from idc_lightning.torch_files import read_checkpoint

CHECKPOINT_PREFIX = "network.backbone."
"""What this project's checkpoints put before the names of the backbone's weights."""

OLD_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
"""Names in torchvision's files of DenseNet, where its modules have no dot before the number."""


def build_backbone(name: str) -> tuple[nn.Module, int]:
    """Make a backbone with random weights.

    Args:
        name: A classifier of torchvision, e.g. ``"resnet18"``, ``"efficientnet_b0"``.

    Returns:
        A module that maps float [B, 3, H, W] to features [B, F, h, w], and F. Names of its weights
        are those of torchvision.

    Raises:
        IDCError: If torchvision has no such classifier, or it isn't convolutional.
    """
    known = models.list_models(module=models)
    if name not in known:
        close = difflib.get_close_matches(name.lower(), known)
        hint = f"did you mean {', '.join(close)}?" if close else "resnet18 is one"
        raise IDCError(f"model.backbone={name} is no classifier of torchvision: {hint}")
    layers = _convolutional(name)
    if layers is None:
        raise IDCError(
            f"model.backbone={name} can't map crops of tissue: take a convolutional one, e.g. "
            "resnet18, resnet50, densenet121, efficientnet_b0, mobilenet_v3_large, convnext_tiny"
        )
    backbone = nn.Sequential(layers)
    return backbone, _width(backbone)


def _convolutional(name: str) -> OrderedDict[str, nn.Module] | None:
    """The layers of a classifier up to its pooling; None if they don't give a map."""
    if name in ("alexnet", "googlenet", "inception_v3"):  # larger images, further outputs
        return None
    classifier = models.get_model(name)
    if hasattr(classifier, "layer4") or hasattr(classifier, "stage4"):
        children = classifier.named_children()
        return OrderedDict(child for child in children if child[0] not in ("avgpool", "fc"))
    if hasattr(classifier, "layers"):
        return OrderedDict(layers=classifier.layers)
    if hasattr(classifier, "features"):
        layers = OrderedDict([("features", classifier.features)])
        if name.startswith("densenet"):
            layers["relu"] = nn.ReLU()  # torchvision applies it between features and pooling
        # Swin transformers give their map with the features last.
        return None if name.startswith("swin") else layers
    if hasattr(classifier, "trunk_output"):
        stages = ("stem", "trunk_output")
        return OrderedDict((stage, getattr(classifier, stage)) for stage in stages)
    return None


def _width(backbone: nn.Module) -> int:
    """Number of features, found by a small image."""
    backbone.eval()
    with torch.inference_mode():
        width = int(backbone(torch.zeros(1, 3, 64, 64)).shape[1])
    backbone.train()
    return width


def load_pretrained(backbone: nn.Module, name: str, weights: str) -> None:
    """Give a backbone its first weights.

    Args:
        backbone: Made by `build_backbone`.
        name: Its name in torchvision.
        weights: ``"none"`` leaves the random ones, ``"imagenet"`` takes torchvision's default ones,
            all else is a file: a state dict of torchvision or a checkpoint of this project.

    Raises:
        IDCError: If the weights can't be downloaded or read, or are of another architecture.
    """
    if weights == "none":
        return
    from_imagenet = weights == "imagenet"
    state = _imagenet(name) if from_imagenet else _from_file(Path(weights).expanduser())
    wanted = backbone.state_dict()
    found = {key: value for key, value in state.items() if key in wanted}
    # torchvision's older files have no counter of BatchNorm's batches.
    missing = [k for k in wanted if k not in found and not k.endswith("num_batches_tracked")]
    shapes = [k for k, value in found.items() if value.shape != wanted[k].shape]
    if missing or shapes:
        wrong = (missing + shapes)[0]
        raise IDCError(
            f"model.weights={weights} are not of model.backbone={name}: {len(missing)} weights are "
            f"missing and {len(shapes)} have another shape, e.g. {wrong}"
        )
    backbone.load_state_dict({**wanted, **found})


def _imagenet(name: str) -> Mapping[str, Tensor]:
    weights = models.get_model_weights(name).DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if not file.is_file():
        try:
            weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:
            raise IDCError(
                f"can't download the ImageNet weights of {name} ({error}): put {weights.url} into "
                f"{file.parent}, give a file by model.weights=<file>, or train from scratch by "
                "model.weights=none"
            ) from error
    return _from_file(file)


def _from_file(path: Path) -> Mapping[str, Tensor]:
    """The backbone's weights in a file, by torchvision's names."""
    content = read_checkpoint(path)
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping):
        raise IDCError(f"{path} holds no weights: its state_dict is a {type(state).__name__}")
    state = {str(k).removeprefix(CHECKPOINT_PREFIX): v for k, v in state.items()}
    return {
        OLD_DENSE_LAYER.sub(r"\1\2", key): value
        for key, value in state.items()
        if isinstance(value, Tensor)
    }
