"""From logits to a probability that can be believed, and from it to the call healthy or IDC."""

from dataclasses import dataclass

import torch
from torch import Tensor

from idc_lightning.metrics import idc_probability


@dataclass(frozen=True)
class Decision:
    """How logits are turned to calls; fitted on dev after training, kept in the checkpoint.

    Attributes:
        temperature: What logits are divided by.
        bias: What is then added to the logit of IDC. A loss that weighs the classes shifts the
            logits, which no temperature can undo.
        threshold: Probability from which a patch counts as IDC.
        bandwidth: Of `idc_lightning.results.smoothing.smooth`, by which logits are averaged before.
    """

    temperature: float
    bias: float
    threshold: float
    bandwidth: float = 0.0

    @property
    def calibrates(self) -> bool:
        """Whether probabilities differ from those of the logits as they are."""
        return (self.temperature, self.bias) != (1.0, 0.0)

    def probability(self, logits: Tensor) -> Tensor:
        """Probability of IDC of logits (averages, if they are): float [..., 2] to float32 [...]."""
        shift = torch.tensor([0.0, self.bias], device=logits.device)
        return idc_probability(logits.float() / self.temperature + shift)


UNDECIDED = Decision(temperature=1.0, bias=0.0, threshold=0.5)
"""What holds until a decision was fitted."""
