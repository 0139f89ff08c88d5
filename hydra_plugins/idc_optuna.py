"""The sweeper that `conf/hydra/sweeper/optuna.yaml` names; Hydra takes those of this package only.

Hydra reads this file at the start of each command, so that it imports nothing else at its top.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """Runs the jobs that Optuna proposes, as told by `idc_lightning.search`."""

    def __init__(self, **_: Any) -> None:  # noqa: ANN401
        """Nothing is kept: `idc_lightning.search` reads and checks the values of the file."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra gives to a sweeper before it starts."""
        from hydra.core.plugins import Plugins

        self.hydra_context = hydra_context
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs.

        Args:
            arguments: What was typed for them.

        Raises:
            IDCError: If they can't be searched so, or Optuna isn't installed.
        """
        from hydra.core.override_parser.overrides_parser import OverridesParser

        from idc_lightning.search import Engine, search

        assert self.hydra_context is not None
        assert self.config is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        engine = Engine(parser.parse_overrides, self._compose, self._launch)
        search(self.config, arguments, engine)

    def _compose(self, job: list[str]) -> DictConfig:
        assert self.hydra_context is not None
        assert self.config is not None
        return self.hydra_context.config_loader.load_sweep_config(self.config, job)

    def _launch(self, jobs: Sequence[Sequence[str]], first: int) -> Sequence[JobReturn]:
        assert self.launcher is not None
        return self.launcher.launch(jobs, initial_job_idx=first)
