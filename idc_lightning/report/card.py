"""The model card of a classifier: what it is, what it learned from, what it is not for."""

from collections.abc import Mapping
from typing import Any

from idc_lightning.classifier import IDCClassifier
from idc_lightning.config import AnyData, sets_momentum
from idc_lightning.data.grid import PATCH

LIMITS = (
    "The public data set holds one stain and one kind of scanner, its labels are regions drawn by "
    "one pathologist at low magnification, and patches at their borders are uncertain. Other "
    "laboratories, scanners, magnifications, other carcinomas and carcinoma in situ were not "
    "tested. Probabilities are calibrated for dev's share of IDC; where IDC is rarer or more "
    "frequent they are shifted."
)
SYNTHETIC = (
    "The tissue is synthetic, drawn by this project to try the program: the numbers say nothing of "
    "real tissue."
)


def model_card(model: IDCClassifier, data: AnyData, patients: Mapping[str, int]) -> dict[str, str]:
    """Describe a classifier.

    Args:
        model: The classifier.
        data: The data that it was trained on.
        patients: Number of the run's patients by split.

    Returns:
        Statements by their names.
    """
    config = model.model_config
    synthetic = data.is_synthetic
    origin = {"none": "random weights", "imagenet": "ImageNet weights"}
    begins = origin.get(config.weights, f"weights of {config.weights}")
    learns = "and only the head learned" if config.freeze_backbone else "all of it learned"
    # Two schedulers set the optimizer's rate themselves, one may set its momentum.
    idle = {"lr"} if model.scheduler_config.name in ("cyclic", "onecycle") else set()
    if sets_momentum(model.scheduler_config):
        idle.add("momentum")
    hidden = "-".join(map(str, config.head.hidden))
    head = f"{hidden}, dropout {config.head.dropout:g}" if hidden else "none"
    counts = ", ".join(f"{count} {split}" for split, count in patients.items())
    return {
        "Intended use": "Research on patches of H&E stained breast tissue. Not for diagnosis: it "
        "is no medical device and was not validated as one.",
        "Input": f"Patches of 50x50 px RGB, about {data.microns_per_pixel:g} µm a pixel; smaller "
        f"ones at the edge of the tissue: {data.edge_patches}.",
        "Output": "Probability of invasive ductal carcinoma (IDC) in the patch.",
        "Context": f"A patch shows {PATCH * data.microns_per_pixel / 1000:.2g} mm of tissue and is "
        f"judged {_context(model, data)}.",
        "Network": f"{config.backbone}, began with {begins}, {learns}; hidden layers of the head "
        f"{head}.",
        "Loss": f"Cross-entropy, class weights {config.loss.class_weights}, label smoothing "
        f"{config.loss.label_smoothing:g}.",
        "Optimizer": _spelt(model.optimizer_config.model_dump(exclude=idle)),
        "Learning rate": _spelt(model.scheduler_config.model_dump()),
        "Data": "Synthetic demo tissue."
        if synthetic
        else "Patches in the layout of the public data set Breast Histopathology Images.",
        "Patients": f"{counts}. It must not be judged on its train patients, and dev was used to "
        "choose epoch, temperature, bias and threshold.",
        "Known limits": SYNTHETIC if synthetic else LIMITS,
    }


def _context(model: IDCClassifier, data: AnyData) -> str:
    """In sight of what a patch is judged."""
    seen = []
    if data.crop > 1:
        two = "by two networks, of which one sees the tissue around it"
        seen.append("in sight of the tissue around it" if model.single is None else two)
    if model.decision.bandwidth > 0:
        patches = f"{model.decision.bandwidth:g} patches"
        seen.append(f"by an average over its neighbours (a Gaussian of {patches})")
    if not seen:
        return "alone: what lies around it is not seen"
    return f"{' and '.join(seen)}: regions smaller than a few patches may be overlooked"


def _spelt(section: Mapping[str, Any]) -> str:
    """A section of the configuration as text, e.g. ``sgd (lr 0.01, momentum 0.9)``."""
    values = ", ".join(f"{key} {value}" for key, value in section.items() if key != "name")
    return f"{section['name']} ({values})" if values else str(section["name"])
