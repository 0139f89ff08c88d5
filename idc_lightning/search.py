"""A sweep whose jobs Optuna proposes, each from what came of those before.

A trial of the study is the job of the same number: one that was killed is run again by its number,
so that it goes on in its folder.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import (
    IntervalSweep,
    Override,
    RangeSweep,
    Sweep,
)
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from idc_lightning.conf_folder import describe, groups_of, override
from idc_lightning.config import Config, SearchConfig, SweepConfig, parse, read_config, refuse_idle
from idc_lightning.errors import IDCError
from idc_lightning.files import write_text
from idc_lightning.results.run_folders import KEPT
from idc_lightning.study import JOURNAL, PRUNED, begin_study, require_optuna

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

UNLOGGED = ("brier",)
"""Metrics of dev that are computed only after training."""

FIXED = ("seed", "split")
"""What can't be searched: a lucky draw of weights or patients is no better configuration."""


@dataclass(frozen=True)
class Engine:
    """What Hydra does for a search.

    Attributes:
        parse: Reads overrides.
        compose: Makes the configuration of a job from its overrides.
        launch: Runs jobs whose numbers begin with the second argument.
    """

    parse: Callable[[list[str]], list[Override]]
    compose: Callable[[list[str]], DictConfig]
    launch: Callable[[Sequence[Sequence[str]], int], Sequence[JobReturn]]


def search(config: DictConfig, typed: list[str], engine: Engine) -> None:
    """Run the jobs of a search, or those of them that are missing.

    Args:
        config: What the jobs share, with Hydra's own values.
        typed: Overrides of the jobs, as they were typed.
        engine: Hydra's part.

    Raises:
        IDCError: If Optuna isn't installed, the values are wrong, or another search stands in the
            folder.
    """
    require_optuna()
    values: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
    del values["_target_"]
    settings: SearchConfig = parse(SearchConfig, values, "hydra.sweeper")
    if "sweep" not in config:
        raise IDCError("hydra/sweeper=optuna is for idc-train: its jobs are ranked by dev")
    sweep: SweepConfig = parse(
        SweepConfig, OmegaConf.to_container(config.sweep, resolve=True), "sweep"
    )
    if sweep.pruning is not None and sweep.metric in UNLOGGED:
        raise IDCError(
            f"sweep.metric={sweep.metric} is computed only after training, so that no job can be "
            "stopped early by it: add sweep.pruning=null"
        )
    overrides = engine.parse(typed)
    space = search_space(overrides, engine.parse, settings.params)
    fixed = [str(each.input_line) for each in overrides if not each.is_sweep_override()]
    folder = Path(config.hydra.sweep.dir).absolute()
    for values in _samples(space):
        _check([*fixed, *values, *_membership(folder / JOURNAL, 0)], engine)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / KEPT).is_file():
        write_text(folder / KEPT, OmegaConf.to_yaml(config))
    study = begin_study(folder / JOURNAL, sweep, space)
    for trials in _batches(study, space, settings, seed=int(config.seed)):
        jobs = [
            [*fixed, *_chosen(trial, space), *_membership(folder / JOURNAL, trial.number)]
            for trial in trials
        ]
        for trial, ended in zip(trials, engine.launch(jobs, trials[0].number), strict=True):
            _tell(study, trial.number, ended.return_value)
            print(_told(study, trial.number, sweep.metric), flush=True)


def search_space(
    typed: Sequence[Override],
    parse_overrides: Callable[[list[str]], list[Override]],
    params: dict[str, str],
) -> dict[str, "BaseDistribution"]:
    """What is searched, by key.

    Args:
        typed: Overrides of the command line. Those that give several values are searched; without
            any it is the given space, apart from what has a fixed value.
        parse_overrides: Reads overrides.
        params: The given space: values in Hydra's grammar, by key.

    Raises:
        IDCError: If a key can't be searched, or not so, or there is nothing to search.
    """
    found = [each for each in typed if each.is_sweep_override()]
    if not found:
        fixed = {each.key_or_group for each in typed}
        left = [f"{key}={values}" for key, values in params.items() if key not in fixed]
        found = parse_overrides(left)
    if not found:
        raise IDCError("nothing is searched: give a value such as model.head.dropout=interval(0,1)")
    space = {}
    for each in found:
        key = each.get_key_element()
        if each.key_or_group.partition(".")[0] in FIXED:
            raise IDCError(
                f"{key} can't be searched, since the best draw of patients or weights is no better "
                "configuration: give it one value, or leave out hydra/sweeper=optuna"
            )
        space[key] = _distribution(each)
    return space


def _distribution(typed: Override) -> "BaseDistribution":
    """The values of an override, as Optuna draws from them."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    values, text = typed.value(), typed.input_line
    if not isinstance(values, Sweep):
        raise IDCError(f"{text} can't be searched: give several values, such as interval(0,1)")
    if getattr(values, "shuffle", False):
        raise IDCError(f"{text}: a search draws by itself, leave out shuffle")
    log = "log" in values.tags
    if values.tags - {"log"} or (log and not isinstance(values, IntervalSweep)):
        raise IDCError(f"{text}: the only tag that is known is log, of an interval")
    try:
        if isinstance(values, IntervalSweep):
            low: Any = values.start
            high: Any = values.end
            whole = isinstance(low, int)  # by int(interval(...)), since bounds are float otherwise
            return (IntDistribution if whole else FloatDistribution)(low, high, log=log)
        if isinstance(values, RangeSweep):
            steps = list(values.range())
            if not steps:
                raise IDCError(f"{text} holds no value")
            low, high, step = min(steps), max(steps), abs(values.step)
            if isinstance(step, int) and isinstance(low, int):
                return IntDistribution(low, int(high), step=step)
            return FloatDistribution(low, high, step=step)
    except ValueError as error:
        raise IDCError(f"{text}: {error}") from error
    return CategoricalDistribution(list(typed.sweep_string_iterator()))


def _samples(space: dict[str, "BaseDistribution"]) -> Iterator[list[str]]:
    """Values of jobs that are composed before any is run: each choice of groups, of others one."""
    from optuna.distributions import CategoricalDistribution

    groups = groups_of("train")
    values: list[Sequence[Any]] = []
    for key, drawn in space.items():
        if isinstance(drawn, CategoricalDistribution):
            values.append(drawn.choices if key in groups else drawn.choices[:1])
        else:
            values.append([drawn.low])  # type: ignore[attr-defined]
    for chosen in itertools.product(*values):
        yield [f"{key}={value}" for key, value in zip(space, chosen, strict=True)]


def _check(job: list[str], engine: Engine) -> None:
    """Refuse what each job would refuse."""
    try:
        composed = engine.compose(job)
    except HydraException as error:
        raise IDCError(
            f"configuration: {describe(error, 'train')} (if nothing is searched on the command "
            "line, the values of conf/hydra/sweeper/optuna.yaml are)"
        ) from error
    with open_dict(composed):
        composed.pop("hydra", None)
    refuse_idle(read_config(composed, Config), job)


def _batches(
    study: "optuna.Study",
    space: dict[str, "BaseDistribution"],
    settings: SearchConfig,
    *,
    seed: int,
) -> Iterator[list["FrozenTrial"]]:
    """Trials with consecutive numbers whose jobs are to be run: first those that were killed."""
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        if trial.params.keys() != space.keys():  # killed while it was proposed
            study.tell(trial.number, state=TrialState.FAIL)
    killed = study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
    for _, group in itertools.groupby(enumerate(killed), lambda pair: pair[1].number - pair[0]):
        yield [trial for _, trial in group]
    while True:
        trials = study.get_trials(deepcopy=False)
        ran = sum(trial.params.keys() == space.keys() for trial in trials)
        proposed = []
        for number in range(len(trials), len(trials) + min(settings.batch, settings.trials - ran)):
            # Anew for each, so that a search that is resumed proposes what it would have.
            study.sampler = TPESampler(n_startup_trials=settings.startup, seed=seed + number)
            proposed.append(study.ask(space).number)
        if not proposed:
            return
        trials = study.get_trials(deepcopy=False)
        yield [trials[number] for number in proposed]


def _chosen(trial: "FrozenTrial", space: dict[str, "BaseDistribution"]) -> list[str]:
    """The overrides of a trial."""
    return [f"{key}={trial.params[key]}" for key in space]


def _membership(journal: Path, number: int) -> list[str]:
    """Overrides that tell a job of its search."""
    return [override("sweep.study", str(journal)), f"sweep.trial={number}"]


def _tell(study: "optuna.Study", number: int, value: float) -> None:
    """Keep what came of a trial; NaN is that of a job that failed, or whose metric is undefined."""
    from optuna.trial import TrialState

    if math.isnan(value):
        study.tell(number, state=TrialState.FAIL)
    elif PRUNED in study.get_trials(deepcopy=False)[number].user_attrs:
        study.tell(number, state=TrialState.PRUNED)
    else:
        study.tell(number, value)


def _told(study: "optuna.Study", number: int, metric: str) -> str:
    """What came of a trial, in one line."""
    from optuna.trial import TrialState

    trial = study.get_trials(deepcopy=False)[number]
    if trial.state == TrialState.COMPLETE:
        best = study.best_trial
        came = (
            f"dev {metric} {trial.value:.4f}, the best is job {best.number} with {best.value:.4f}"
        )
    elif trial.state == TrialState.PRUNED:
        came = f"stopped after {trial.user_attrs[PRUNED]} epochs"
    else:
        came = f"failed, or dev {metric} is undefined"
    return f"search: job {number}: {came}"
