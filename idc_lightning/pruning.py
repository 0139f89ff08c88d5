"""Stops a job of a search that is worse than the others were after as many epochs.

Which is worse is told by the median of the others, as in D. Golovin et al., "Google Vizier: A
Service for Black-Box Optimization", KDD 2017, section 3.2.2.
"""

from typing import Any

import lightning
from lightning.pytorch.trainer.states import TrainerFn

from idc_lightning.callbacks import OfTraining
from idc_lightning.config import SweepConfig
from idc_lightning.search import PRUNED, open_study, require_optuna


class Pruning(OfTraining):
    """Tells the search of each epoch, and ends the training if the search says so.

    A job that the search knows the end of, since it is prolonged by itself, is left alone; so is
    one whose search isn't where it was.

    Args:
        config: With the search and the number of the job there.

    Attributes:
        pruned_after: Epochs after which the job was stopped; None if it wasn't.
    """

    def __init__(self, config: SweepConfig) -> None:
        assert config.pruning is not None
        assert config.study is not None
        assert config.trial is not None
        require_optuna()
        self._journal, self._number = config.study, config.trial
        self._rule, self._metric = config.pruning, f"dev/{config.metric}"
        self.pruned_after: int | None = None

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Tell of the epoch, and decide, in all processes alike."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        value = float(trainer.callback_metrics[self._metric])
        behind = trainer.is_global_zero and self._is_behind(trainer.current_epoch, value)
        if trainer.strategy.reduce_boolean_decision(behind, all=False):
            self.pruned_after = trainer.current_epoch + 1
            trainer.should_stop = True

    def _is_behind(self, epoch: int, value: float) -> bool:
        import optuna
        from optuna.trial import Trial

        if not self._journal.is_file():
            return False
        pruner = optuna.pruners.MedianPruner(self._rule.trials, self._rule.epochs)
        study = open_study(self._journal, pruner=pruner)
        known = study.get_trials(deepcopy=False)[self._number]
        if known.state.is_finished():
            return False
        trial = Trial(study, known._trial_id)
        if epoch not in known.intermediate_values:  # it is if the epoch was repeated after a kill
            trial.report(value, epoch)
        behind = trial.should_prune()
        if behind:
            trial.set_user_attr(PRUNED, epoch + 1)
        return behind

    def state_dict(self) -> dict[str, Any]:
        """Whether it was stopped, for one that is resumed after its training."""
        return {"pruned_after": self.pruned_after}

    def go_on(self, state: dict[str, Any]) -> None:
        """As `OfTraining.go_on`."""
        self.pruned_after = state["pruned_after"]
