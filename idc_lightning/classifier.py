"""The LightningModule: one step for train, dev and test, around network, loss and metrics."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import lightning
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer

from idc_lightning import ranks
from idc_lightning.config import (
    AnyOptimizer,
    AnyScheduler,
    ModelConfig,
    parse,
    with_highest_rate,
)
from idc_lightning.data.batches import Batch, is_single, split_block
from idc_lightning.data.datamodule import IDCDataModule
from idc_lightning.data.grid import NO_CELL, NO_LABEL, grid_of
from idc_lightning.data.views import VIEWS, as_view
from idc_lightning.decision import UNDECIDED, Decision
from idc_lightning.errors import IDCError
from idc_lightning.frozen import compute_features
from idc_lightning.metrics import idc_probability, patch_metrics
from idc_lightning.models.backbone import load_pretrained
from idc_lightning.models.batchnorm import adapt_batchnorm, running_statistics
from idc_lightning.models.compiled import compile_backbone
from idc_lightning.models.dropout import seed_draws
from idc_lightning.models.network import PatchNetwork
from idc_lightning.optim import Steps, build_optimizer, build_scheduler
from idc_lightning.torch_files import read_checkpoint, write_checkpoint

OF_TRAINING = ("weights", "freeze_backbone", "frozen_batchnorm", "head", "loss")
"""Values of the section ``model`` that say how its network has learned."""


class BlockOutput(TypedDict):
    """What the n steps of a block gave.

    Attributes:
        loss: Of the last step, float32 [].
        losses: Of each step, float32 [n].
        rates: Learning rate of each step.
    """

    loss: Tensor
    losses: Tensor
    rates: list[float]


@dataclass(frozen=True)
class Weights:
    """Weights of a classifier, as a later one begins with them.

    Attributes:
        network: Of its network.
        single: Of its network of single patches; the same where it has no other one.
    """

    network: Mapping[str, Tensor]
    single: Mapping[str, Tensor]


class IDCClassifier(lightning.LightningModule):
    """Classify patches of breast tissue into healthy and IDC.

    Its checkpoints hold plain values only and load by ``load_from_checkpoint(path)`` alone.

    Args:
        model: Backbone, head and loss; a section of the configuration or its plain values.
        optimizer: Likewise.
        scheduler: Likewise.
        decision: How logits are turned to calls, as plain values of a `Decision`; None before it
            is fitted, when the metrics of epochs are computed.

    Attributes:
        gradient_clip: Largest norm of the gradient in `learn_in_blocks`; None doesn't limit it.
        single: The network of single patches that judges beside ``network``, if one does; it
            learns nothing.
        start: Weights with which training begins in place of ``model.weights``; to be set before,
            also for the network of single patches.
        outputs: Of the last epoch of each stage, by its name: row numbers int64 [n] and logits
            float32 [n, 2] of the patches, in the order in which they were seen, on the CPU.

    Raises:
        IDCError: If a value isn't allowed or the backbone isn't known.
    """

    class_weights: Tensor

    def __init__(
        self,
        model: ModelConfig | Mapping[str, Any],
        optimizer: AnyOptimizer | Mapping[str, Any],
        scheduler: AnyScheduler | Mapping[str, Any],
        decision: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.model_config: ModelConfig = parse(ModelConfig, model, "model")
        self.optimizer_config: AnyOptimizer = parse(AnyOptimizer, optimizer, "optimizer")
        self.scheduler_config: AnyScheduler = parse(AnyScheduler, scheduler, "scheduler")
        self.save_hyperparameters(
            {**self._sections(), "decision": None if decision is None else dict(decision)}
        )
        self.network = PatchNetwork(
            self.model_config.backbone,
            self.model_config.head,
            frozen=self.model_config.freeze_backbone,
            context=self.model_config.context,
        )
        self.single: PatchNetwork | None = None
        if self.model_config.context.with_single:
            config = self.model_config
            self.single = PatchNetwork(config.backbone, config.head, frozen=True, alone=True)
            self.single.head.requires_grad_(False)
        self.register_buffer("class_weights", self._fixed_class_weights())
        self.metrics = patch_metrics(0.5)
        self.outputs: dict[str, tuple[Tensor, Tensor]] = {}
        self._seen: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
        self.gradient_clip: float | None = None
        self.start: Weights | None = None

    def _sections(self) -> dict[str, Any]:
        """The configuration as plain values, as checkpoints keep it."""
        return {
            "model": self.model_config.model_dump(mode="json"),
            "optimizer": self.optimizer_config.model_dump(mode="json"),
            "scheduler": self.scheduler_config.model_dump(mode="json"),
        }

    def _fixed_class_weights(self) -> Tensor:
        """The weights of the loss as far as they don't depend on the data."""
        weights = self.model_config.loss.class_weights
        return torch.ones(2) if isinstance(weights, str) else torch.tensor(weights)

    def begin_with(self, named: str, other: "IDCClassifier", *, learns: bool) -> None:
        """Take the weights of another in place of ``model.weights``.

        Args:
            named: What the other is called where it is said with what this one began.
            other: Of the same architecture.
            learns: Whether it is trained on; else what is said of its training stays true.
        """
        self.start = other.weights()
        if learns:
            self.model_config = self.model_config.model_copy(update={"weights": named})
            self.hparams.update(self._sections())
        else:
            self.class_weights = other.class_weights
            self._tell(other.model_config, other.optimizer_config, other.scheduler_config)

    def _tell(self, model: ModelConfig, optimizer: AnyOptimizer, scheduler: AnyScheduler) -> None:
        """Say of the training what these sections say."""
        told = {name: getattr(model, name) for name in OF_TRAINING}
        self.model_config = self.model_config.model_copy(update=told)
        self.optimizer_config, self.scheduler_config = optimizer, scheduler
        self.hparams.update(self._sections())

    def weights(self) -> Weights:
        """What others may begin with."""
        single = self.network if self.single is None else self.single
        return Weights(self.network.state_dict(), single.state_dict())

    def set_rates(self, base_lr: float, max_lr: float) -> None:
        """Take the learning rates of a range test; the optimizers must be made after that.

        Raises:
            IDCError: If they aren't above the last rate of a cosine.
        """
        self.optimizer_config, self.scheduler_config = with_highest_rate(
            self.optimizer_config, self.scheduler_config, max_lr, base_lr
        )
        self.hparams.update(self._sections())

    @property
    def decided(self) -> bool:
        """Whether a decision was fitted."""
        return self.hparams["decision"] is not None

    @property
    def decision(self) -> Decision:
        """How logits are turned to calls; `UNDECIDED` before it is fitted."""
        values = self.hparams["decision"]
        return UNDECIDED if values is None else Decision(**values)

    def decide_by(self, decision: Decision) -> None:
        """Take a decision that was fitted on dev."""
        self.hparams["decision"] = asdict(decision)

    @property
    def data(self) -> IDCDataModule:
        """The data module of the running trainer."""
        data: IDCDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    def on_fit_start(self) -> None:
        """Take pretrained weights, weigh the classes, make a frozen backbone ready.

        Raises:
            IDCError: If the pretrained weights can't be had, or features not be written.
        """
        if self.trainer.ckpt_path is None:  # else a checkpoint has brought all of it
            if ranks.rank() == 0:
                self._begin()
            ranks.share_from_leader(iter(self.state_dict().values()))
        if self.model_config.compile:
            compile_backbone(self.network)
        self._compute_features("train", "dev")

    def on_test_start(self) -> None:
        """Compute a frozen backbone on test, which nothing needs before."""
        self._compute_features("test")

    def _begin(self) -> None:
        """What a training from the start needs."""
        config = self.model_config
        if self.start is None:
            if self.single is not None:
                raise ValueError("the network of single patches has no weights: set start")
            load_pretrained(self.network.backbone, config.backbone, config.weights)
        else:
            # Context may have weights of its own, which begin as they are.
            self.network.load_state_dict({**self.network.state_dict(), **self.start.network})
            if self.single is not None:
                self.single.load_state_dict(self.start.single)
        if self.trainer.max_epochs == 0:  # it is judged as it has learned
            return
        if config.loss.class_weights == "balanced":
            self.class_weights = balanced_weights(self.data.class_counts()).to(self.device)
        if config.freeze_backbone and config.frozen_batchnorm == "adapt":
            images = self.data.train_images(self.device)
            with self.trainer.precision_plugin.forward_context():
                adapt_batchnorm(self.network, self.network.backbone, images)

    def _compute_features(self, *splits: str) -> None:
        if self.data.on_features:
            self.data.features = compute_features(
                self.network,
                self.model_config.backbone,
                self.data,
                splits,
                precision=str(self.trainer.precision),
                compiled=self.model_config.compile,
                context=self.trainer.precision_plugin.forward_context,
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep in which precision the run computes, so that it can be judged alike.

        Within an epoch also what its metrics of train need of the batches so far.
        """
        checkpoint["precision"] = str(self.trainer.precision)
        if "train" in self._seen:
            checkpoint["seen"] = ranks.gathered(_joined(self._seen["train"]))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up an epoch of train, and what is said of the training.

        A run that goes on without the one with which it began couldn't say it otherwise.
        """
        told = checkpoint["hyper_parameters"]
        self._tell(
            parse(ModelConfig, told["model"], "model"),
            parse(AnyOptimizer, told["optimizer"], "optimizer"),
            parse(AnyScheduler, told["scheduler"], "scheduler"),
        )
        if "seen" in checkpoint and ranks.rank() == 0:
            cells, logits, labels = (part.to(self.device) for part in checkpoint["seen"])
            self._seen["train"] = [(cells, logits, labels)]

    def forward(
        self,
        image: Tensor | None = None,
        features: Tensor | None = None,
        shown: Tensor | None = None,
        cell: Tensor | None = None,
    ) -> Tensor:
        """Logits of images, or of the features that a frozen backbone gave of them.

        Args:
            image: Float [B, 3, 50h, 50w] in 0 to 1.
            features: Float32 [B, h, w, F], in place of images.
            shown: Row numbers of the patches, int64 [B, h, w]; -1 where there is none. None is all.
            cell: The same of those that are judged.

        Returns:
            Float32 [B, h, w, 2], or [n, 2] of the cells that are judged.
        """
        logits: Tensor = self.network(image, features, _there(shown), _there(cell))
        return logits

    def judge(
        self,
        image: Tensor | None = None,
        features: Tensor | None = None,
        shown: Tensor | None = None,
        cell: Tensor | None = None,
    ) -> Tensor:
        """Logits by which patches are judged after training.

        Means over both networks, and over all eight views, if wanted.

        Args:
            image: As of `forward`.
            features: Likewise; of them the logits are taken as they are.
            shown: Likewise.
            cell: Likewise.

        Returns:
            Float32 [n, 2] of the cells that are judged.
        """
        if image is None or not self.model_config.test_time_augmentation:
            return self._of_both(image, features, shown, cell).flatten(0, -2)
        if shown is None or cell is None:
            shown = cell = image.new_zeros(len(image), *grid_of(image), dtype=torch.long)
        place = torch.arange(cell.numel(), device=cell.device).reshape(cell.shape)
        total = torch.zeros(cell.numel(), 2, device=cell.device)
        for view in range(VIEWS):
            turned = as_view(cell, view, rows=1)
            seen = as_view(image, view, rows=2), None, as_view(shown, view, rows=1), turned
            total[as_view(place, view, rows=1)[turned != NO_CELL]] += self._of_both(*seen)
        return total[(cell != NO_CELL).flatten()] / VIEWS

    def _of_both(
        self,
        image: Tensor | None,
        features: Tensor | None,
        shown: Tensor | None,
        cell: Tensor | None,
    ) -> Tensor:
        """As `forward`, the mean with the network of single patches if there is one."""
        logits: Tensor = self(image, features, shown, cell)
        if self.single is None:
            return logits
        judged = _there(cell)
        alone: Tensor = self.single(image, None, judged, judged)
        return (logits + alone) / 2

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | BlockOutput:
        """Loss of a batch of train; of a block, whose steps are taken here, what each of them gave.

        Raises:
            IDCError: If the loss is no longer finite.
        """
        size = len(batch["cell"])
        if not self.automatic_optimization:
            output = self._learn_block(batch, batch_idx)
            self.log("train/loss", output["loss"], prog_bar=True, logger=False, batch_size=size)
            return output
        seed_draws(self.device, self.data.seed, self.global_step, self.global_rank)
        loss = self.train_loss(*self._step(batch, batch_idx, "train"))
        # A GPU has to be waited for; a loss that isn't finite stays so until the next look.
        waits = loss.device.type != "cpu"
        if not waits or self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._check_finite(loss)
        self.log("train/loss", loss, prog_bar=True, logger=False, batch_size=size)  # but `Curves`
        return loss

    def learn_in_blocks(self, *, gradient_clip: float | None) -> None:
        """Take several steps in each `training_step`, one for each batch of a block.

        Where a step takes a millisecond, as that of a head on features does, Lightning's own time
        for each call would exceed it.

        Args:
            gradient_clip: Largest norm of the gradient; None doesn't limit it.
        """
        self.automatic_optimization = False
        self.gradient_clip = gradient_clip

    def _learn_block(self, batch: Batch, batch_idx: int) -> BlockOutput:
        """Step for each batch of a block."""
        optimizer, scheduler = self.trainer.optimizers[0], self.lr_schedulers()
        assert not isinstance(scheduler, list)
        losses, rates = [], []
        # The head computes in float32 whatever the precision; Lightning calls this in a context
        # that would round its gradients.
        with torch.autocast(self.device.type, enabled=False):
            for number, part in enumerate(split_block(batch, self.data.batch_size)):
                step = self.global_step + number
                seed_draws(self.device, self.data.seed, step, self.global_rank)
                loss = self.train_loss(*self._step(part, batch_idx + number, "train"))
                rates.append(float(optimizer.param_groups[0]["lr"]))
                self.descend(optimizer, loss)
                if scheduler is not None:
                    scheduler.step()
                losses.append(loss.detach())
        self._count_steps(len(losses))
        block: BlockOutput = {"loss": losses[-1], "losses": torch.stack(losses), "rates": rates}
        self._check_finite(block["losses"].sum())
        return block

    def descend(self, optimizer: Optimizer, loss: Tensor) -> None:
        """Take a step of `learn_in_blocks`."""
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.configure_gradient_clipping(optimizer, self.gradient_clip)
        optimizer.step()

    def _count_steps(self, steps: int) -> None:
        """Tell Lightning of steps that it didn't take itself, which would cost a fifth of each."""
        loop = self.trainer.fit_loop.epoch_loop
        for _ in range(steps):
            loop.manual_optimization.optim_step_progress.increment_ready()
            loop.manual_optimization.optim_step_progress.increment_completed()
        # The curves of the loggers count steps, where Lightning counts its own calls.
        loop._batches_that_stepped += steps - 1

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Limit the norm of the gradient; Lightning's own refuses fused optimizers."""
        if gradient_clip_val is not None:
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            nn.utils.clip_grad_norm_(weights, gradient_clip_val)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the logits of a batch of dev."""
        self._step(batch, batch_idx, "dev")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the logits of a batch of test."""
        self._step(batch, batch_idx, "test")

    def _step(self, batch: Batch, batch_idx: int, stage: str) -> tuple[Tensor, Tensor]:
        """Logits and labels of a batch, kept for the metrics of the epoch."""
        if batch_idx == 0:  # an interrupted epoch may have left some
            self._seen[stage] = []
        learning = stage == "train" or self.trainer.state.fn == TrainerFn.FITTING
        logits = (self if learning else self.judge)(**inputs_of(batch)).flatten(0, -2)
        cells, labels = judged_cells(batch)
        self._seen.setdefault(stage, []).append((cells, logits.detach(), labels))
        return logits, labels

    def train_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch that processes share, such that its mean over them is the batch's.

        Each takes the mean over its own patches, which may weigh more or less than those of others.

        Args:
            logits: Float32 [n, 2] of the patches of this process.
            labels: Int64 [n]; -1 is left out.
        """
        loss = self.loss(logits, labels)
        if ranks.world() == 1:
            return loss
        own = self.class_weights[labels[labels != NO_LABEL]].sum()
        return loss * (own * ranks.world() / ranks.total(own))

    def loss(self, logits: Tensor, labels: Tensor, *, smoothed: bool = True) -> Tensor:
        """Weighted cross-entropy.

        Args:
            logits: Float32 [n, 2].
            labels: Int64 [n]; -1 is left out.
            smoothed: Whether the labels are smoothed, as for training.
        """
        return nn.functional.cross_entropy(
            logits,
            labels,
            weight=self.class_weights,
            label_smoothing=self.model_config.loss.label_smoothing if smoothed else 0.0,
            ignore_index=NO_LABEL,
        )

    def _check_finite(self, loss: Tensor) -> None:
        if bool(torch.isfinite(loss)):
            return
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        raise _diverged(
            f"the loss is {loss.item()} at step {self.global_step} (epoch {self.current_epoch}), "
            f"learning rate {rate:.3g}"
        )

    def on_train_epoch_end(self) -> None:
        """Log the metrics of train, as seen while learning."""
        self._close("train")

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of dev."""
        self._close("dev")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of test."""
        self._close("test")

    def _close(self, stage: str) -> None:
        """Log loss and metrics of all patches of an epoch, and keep their logits."""
        cells, logits, labels = self._of_all(self._seen.pop(stage, []))
        if not bool(torch.isfinite(logits).all()):
            rates = [optimizer.param_groups[0]["lr"] for optimizer in self.trainer.optimizers]
            at = f", learning rate {rates[0]:.3g}" if rates else ""
            raise _diverged(
                f"logits of {stage} are not finite after step {self.global_step} "
                f"(epoch {self.current_epoch}){at}"
            )
        loss = self.loss(logits, labels, smoothed=False)
        self.metrics.update(idc_probability(logits), labels)
        values = {"loss_epoch" if stage == "train" else "loss": loss, **self.metrics.compute()}
        self.metrics.reset()
        self.log_dict(
            {f"{stage}/{name}": value for name, value in values.items()},
            on_step=False,
            on_epoch=True,
            batch_size=len(labels),
            # The best epoch is judged once more after training; its curves hold it already.
            logger=self.trainer.state.fn != TrainerFn.VALIDATING,
        )
        judged = cells != NO_CELL  # a window may be shown without judging it
        self.outputs[stage] = (cells[judged].cpu(), logits[judged].cpu())

    def _of_all(self, seen: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """Cells, logits and labels of the batches of all processes, in the order of one."""
        if ranks.world() == 1:
            return _joined(seen)
        none = torch.zeros(0, dtype=torch.long, device=self.device)
        empty = (none, torch.zeros(0, 2, device=self.device), none)
        cells, logits, labels = ranks.gathered(_joined([empty, *seen]))
        order = cells.argsort(stable=True)
        return cells[order], logits[order], labels[order]

    def on_validation_epoch_start(self) -> None:
        """Judge dev by the same statistics in all processes, of which each has taken its own."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            ranks.mean_over_ranks(running_statistics(self.network))

    def configure_optimizers(self) -> Optimizer | OptimizerLRSchedulerConfig:
        """The optimizer of what learns, and its scheduler, stepped with each batch."""
        learning = [weight for weight in self.parameters() if weight.requires_grad]
        optimizer = build_optimizer(learning, self.optimizer_config)
        epochs = self.trainer.max_epochs or 1
        if self.automatic_optimization:
            total = int(self.trainer.estimated_stepping_batches)
        else:
            total = epochs * self.data.steps_per_epoch()
        steps = Steps(total, max(1, total // epochs))
        scheduler = build_scheduler(optimizer, self.scheduler_config, steps)
        if scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def _there(cells: Tensor | None) -> Tensor | None:
    """Where there is a patch, bool; None is everywhere."""
    return None if cells is None else cells != NO_CELL


def _joined(seen: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Cells, logits and labels of batches as those of one."""
    cells, logits, labels = (torch.cat(part) for part in zip(*seen, strict=True))
    return cells, logits, labels


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """What a classifier takes of a batch: its images, or features in their place."""
    key: Literal["features", "image"] = "features" if "features" in batch else "image"
    inputs: dict[str, Tensor] = {key: batch[key]}
    if not is_single(batch):
        inputs |= {"shown": batch["shown"], "cell": batch["cell"]}
    return inputs


def judged_cells(batch: Batch) -> tuple[Tensor, Tensor]:
    """Row numbers and labels of the patches that a batch judges, int64 [n] each."""
    if is_single(batch):
        return batch["cell"].flatten(), batch["label"].flatten()
    judged = batch["cell"] != NO_CELL
    return batch["cell"][judged], batch["label"][judged]


def write_decision(checkpoint: Path, decision: Decision) -> None:
    """Give a checkpoint of `IDCClassifier` the decision that was fitted after training.

    Raises:
        IDCError: If it can't be read or written.
    """
    content = read_checkpoint(checkpoint)
    content["hyper_parameters"]["decision"] = asdict(decision)
    write_checkpoint(content, checkpoint)


def balanced_weights(counts: list[int]) -> Tensor:
    """Weights n / (K n_k) of classes with n_k patches each, float32 [K]."""
    number = torch.tensor(counts, dtype=torch.float64)
    return (number.sum() / (len(counts) * number)).float()


def _diverged(what: str) -> IDCError:
    return IDCError(
        f"training diverged: {what}; lower scheduler.max_lr or optimizer.lr, or set "
        "trainer.gradient_clip=1"
    )


def load_classifier(path: Path | str) -> IDCClassifier:
    """Load a checkpoint for evaluation, with clear errors.

    Raises:
        IDCError: If it is absent, damaged, holds Python objects, or isn't of this project.
    """
    path = Path(path)
    content = read_checkpoint(path)
    if not all(isinstance(content.get(key), Mapping) for key in ("hyper_parameters", "state_dict")):
        raise IDCError(f"{path} is no checkpoint of idc_lightning: it has no hyper_parameters")
    try:
        classifier = IDCClassifier.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except (IDCError, RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise IDCError(f"{path} is of another architecture or version: {reason}") from error
    return classifier.eval()
