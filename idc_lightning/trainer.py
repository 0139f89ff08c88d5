"""The Trainer of a configuration: hardware and precision, callbacks."""

from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, RichProgressBar
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, SimpleProfiler
from lightning.pytorch.strategies import DDPStrategy

from idc_lightning.callbacks import (
    AveragedWeights,
    Curves,
    EpochLines,
    SingleThreadHead,
    Throughput,
)
from idc_lightning.checkpoints import Checkpoints, WholeFiles
from idc_lightning.config import CallbacksConfig, Config, HardwareConfig, SweepConfig, TrainerConfig
from idc_lightning.errors import IDCError
from idc_lightning.frozen import block_steps
from idc_lightning.loggers import build_loggers
from idc_lightning.lr_range_test import LRRangeTest
from idc_lightning.metrics import better
from idc_lightning.models.batchnorm import SyncOnCPU
from idc_lightning.pruning import Pruning
from idc_lightning.ranks import ALONE, Environment, Place

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]

MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""What each precision computes in where that is safe; all others in float32."""


def build_trainer(
    config: Config,
    folder: Path,
    *,
    interactive: bool,
    first_step: int = 0,
    place: Place = ALONE,
) -> lightning.Trainer:
    """Make the Trainer of a run.

    Args:
        config: The run's configuration.
        folder: The run folder.
        interactive: Whether somebody watches a terminal.
        first_step: Step that is taken first, above 0 in a resumed run.
        place: Of this process among those that share the training.

    Raises:
        IDCError: If the hardware lacks what the configuration asks for.
    """
    trainer = config.trainer
    accelerator = resolve_accelerator(trainer)
    block = block_steps(config, place.world)
    learns = trainer.epochs > 0
    loggers = build_loggers(config.logger, folder, first_step=first_step, learns=learns)
    progress = progress_kind(config.callbacks, interactive=interactive)
    made = lightning.Trainer(
        accelerator=accelerator,
        **shared(trainer, place, accelerator),
        precision=resolve_precision(trainer, accelerator),
        max_epochs=trainer.epochs,
        # Of a block of steps the module clips the gradients.
        gradient_clip_val=trainer.gradient_clip if block == 1 else None,
        deterministic=trainer.deterministic,
        log_every_n_steps=trainer.log_every_n_steps,
        profiler=build_profiler(trainer),
        callbacks=build_callbacks(
            config.callbacks,
            folder,
            progress,
            course=config.course(),
            sweep=config.sweep,
            logs=bool(loggers),
            learns=learns,
            single_thread_head=accelerator == "cpu"
            and config.model.freeze_backbone
            and config.model.context.name != "grid",
        ),
        logger=loggers,
        enable_progress_bar=progress != "none",
        enable_model_summary=False,
        # Errors of dev's metrics show in the first epoch; a sanity check would only cost time.
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    # Lightning would stop for SIGTERM wherever it looks, also where nothing was saved;
    # `idc_lightning.termination` answers it instead.
    made._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return made


def shared(config: TrainerConfig, place: Place, accelerator: str) -> dict[str, Any]:
    """What a `lightning.Trainer` is told of the processes that share a training.

    Each batch is divided among them by `idc_lightning.data.batches.BatchShare`, not by a sampler of
    Lightning's, which would take some patches twice.
    """
    # Lightning would look for Slurm itself, and expect as many processes as a job has tasks.
    plugins: list[Any] = [WholeFiles(), Environment(place)]
    if place.world == 1:
        return {"devices": 1, "plugins": plugins}
    # Lightning replaces BatchNorm only by torch's own, which needs a GPU.
    if config.sync_batchnorm and accelerator == "cpu":
        plugins.append(SyncOnCPU())
    return {
        "devices": place.local_world,
        "num_nodes": place.world // place.local_world,
        # Running statistics of BatchNorm are averaged before they are used, not in each step.
        "strategy": DDPStrategy(forward_sync_buffers=False),
        "sync_batchnorm": config.sync_batchnorm and accelerator == "gpu",
        "use_distributed_sampler": False,
        "plugins": plugins,
    }


def resolve_accelerator(config: HardwareConfig) -> str:
    """``"cpu"`` or ``"gpu"``.

    Raises:
        IDCError: If a GPU is asked for and there is none.
    """
    present = torch.cuda.is_available()
    if config.accelerator == "gpu" and not present:
        raise IDCError(
            "trainer.accelerator=gpu, but no CUDA GPU is present: take trainer.accelerator=cpu or "
            "trainer.accelerator=auto"
        )
    return "gpu" if present and config.accelerator != "cpu" else "cpu"


def resolve_precision(config: HardwareConfig, accelerator: str) -> Precision:
    """Lightning's name of the precision.

    In bf16-mixed a ResNet18 gives probabilities within 0.08 of its own in 32-true, 0.01 on average,
    and metrics within 0.06 (tests/test_precision.py); nets that round more may differ more.

    Raises:
        IDCError: If the hardware doesn't compute in the precision that is asked for.
    """
    bf16 = has_bf16(accelerator)
    if config.precision == "auto":
        return "bf16-mixed" if bf16 else "32-true"
    if config.precision == "bf16-mixed" and not bf16:
        raise IDCError(
            f"trainer.precision=bf16-mixed, but this {accelerator.upper()} doesn't compute in "
            "bfloat16: take trainer.precision=auto or 32-true"
        )
    if config.precision == "16-mixed" and accelerator == "cpu":
        raise IDCError(
            "trainer.precision=16-mixed needs a GPU: take trainer.precision=auto or 32-true"
        )
    return config.precision


def has_bf16(accelerator: str) -> bool:
    """Whether the hardware computes in bfloat16 itself."""
    if accelerator == "gpu":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    able = torch.cpu.get_capabilities()
    return any(bool(able.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def build_profiler(config: TrainerConfig) -> Profiler | None:
    """The profiler of a configuration; its summary is printed by the command."""
    kinds: dict[str, type[SimpleProfiler | AdvancedProfiler]] = {
        "simple": SimpleProfiler,
        "advanced": AdvancedProfiler,
    }
    return None if config.profiler is None else kinds[config.profiler]()


def progress_kind(config: CallbacksConfig, *, interactive: bool) -> str:
    """``"rich"``, ``"plain"`` or ``"none"``."""
    if config.progress != "auto":
        return config.progress
    return "rich" if interactive else "plain"


def build_callbacks(
    config: CallbacksConfig,
    folder: Path,
    progress: str,
    *,
    course: str,
    sweep: SweepConfig,
    logs: bool,
    learns: bool,
    single_thread_head: bool = False,
) -> list[Callback]:
    """Checkpoints, progress, and what else is configured.

    Args:
        config: Which.
        folder: The run folder.
        progress: As of `progress_kind`.
        course: Hash of what decides the course of the training, kept in its checkpoints.
        sweep: Says whether the run is a job of a search, which may stop it early.
        logs: Whether anything is logged.
        learns: Whether there is any step, so that weights can be averaged.
        single_thread_head: Whether one thread trains the head.
    """
    callbacks: list[Callback] = [
        Checkpoints(
            folder,
            monitor=config.checkpoint.monitor,
            last_every=config.checkpoint.last_every,
            course=course,
        ),
        Throughput(),
    ]
    if single_thread_head:
        callbacks.append(SingleThreadHead())
    if config.lr_range_test is not None:
        callbacks.append(LRRangeTest(config.lr_range_test, folder, bar=progress == "rich"))
    if config.early_stopping is not None:
        callbacks.append(
            EarlyStopping(
                config.early_stopping.monitor,
                mode=better(config.early_stopping.monitor),
                patience=config.early_stopping.patience,
                min_delta=config.early_stopping.min_delta,
            )
        )
    if sweep.study is not None and sweep.pruning is not None:
        callbacks.append(Pruning(sweep, folder))
    if config.ema_decay is not None and learns:
        callbacks.append(AveragedWeights(config.ema_decay))
    if logs:
        callbacks.append(Curves())
    if progress == "rich":
        callbacks.append(RichProgressBar(leave=True))
    if progress == "plain":
        callbacks.append(EpochLines())
    return callbacks
