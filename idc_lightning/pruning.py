"""Stops a job of a search that is worse than the others were after as many epochs.

Worse is what is below the median of the others, a variant of the rule of D. Golovin et al., "Google
Vizier: A Service for Black-Box Optimization", KDD 2017, section 3.2.2.
"""

from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.trainer.states import TrainerFn

from idc_lightning.callbacks import OfTraining
from idc_lightning.config import SweepConfig
from idc_lightning.study import PRUNED, STUDY, journal_storage, require_optuna


class Pruning(OfTraining):
    """Tells the search of each epoch, and ends the training if the search says so.

    A job that the search knows the end of, since it is prolonged by itself, is left alone; so is
    one that isn't in the folder of its search any more.

    Args:
        config: With the search and the number of the job there.
        folder: The run folder.

    Attributes:
        pruned_after: Epochs after which the job was stopped; None if it wasn't.
    """

    def __init__(self, config: SweepConfig, folder: Path) -> None:
        assert config.pruning is not None
        assert config.study is not None
        assert config.trial is not None
        require_optuna()
        self._journal, self._number = config.study, config.trial
        self._within = config.study.parent in folder.absolute().parents
        self._rule, self._metric = config.pruning, f"dev/{config.metric}"
        self.pruned_after: int | None = None

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Tell of the epoch, and decide, in all processes alike."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        value = float(trainer.callback_metrics[self._metric])
        behind = trainer.is_global_zero and self._is_behind(
            trainer.current_epoch, value, last=trainer.current_epoch + 1 == trainer.max_epochs
        )
        if trainer.strategy.reduce_boolean_decision(behind, all=False):
            self.pruned_after = trainer.current_epoch + 1
            trainer.should_stop = True

    def _is_behind(self, epoch: int, value: float, *, last: bool) -> bool:
        """Tell of an epoch, and whether it is to be the last one though others are left."""
        import optuna
        from optuna.trial import Trial

        if not self._within or not self._journal.is_file():
            return False
        study = optuna.load_study(
            study_name=STUDY,
            storage=journal_storage(self._journal),
            pruner=optuna.pruners.MedianPruner(self._rule.trials, self._rule.epochs - 1),
        )
        known = study.get_trials(deepcopy=False)[self._number]
        reached = max(known.intermediate_values, default=-1)
        if known.state.is_finished() or epoch < reached:
            return False
        if epoch == reached:  # repeated, since the job was killed after it
            return PRUNED in known.user_attrs
        trial = Trial(study, known._trial_id)
        trial.report(value, epoch)
        behind = not last and trial.should_prune()
        if behind:
            trial.set_user_attr(PRUNED, epoch + 1)
        return behind

    def on_train_epoch_start(self, *_: Any) -> None:  # noqa: ANN401
        """A training that goes on, since it is prolonged, wasn't stopped."""
        self.pruned_after = None

    def state_dict(self) -> dict[str, Any]:
        """Whether it was stopped, for one that is resumed after its training."""
        return {"pruned_after": self.pruned_after}

    def go_on(self, state: dict[str, Any]) -> None:
        """As `OfTraining.go_on`."""
        self.pruned_after = state["pruned_after"]
