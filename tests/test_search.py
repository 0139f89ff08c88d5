import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers_command import SMALL, Command
from helpers_model import composed, config_of, told
from helpers_scripted import fit
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from idc_lightning.conf_folder import conf_folder, override
from idc_lightning.config import SweepConfig
from idc_lightning.evaluate import main as evaluate
from idc_lightning.pruning import Pruning
from idc_lightning.search import Engine, search, search_space
from idc_lightning.study import JOURNAL, PRUNED, STUDY, journal_storage

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*LeafSpec.*")

PARSER = OverridesParser.create()

SPACE = ("model.head.dropout=interval(0.1,0.5)", "optimizer.momentum=choice(0.5,0.9)")


JOB = composed("sweep.study=somewhere", "sweep.trial=0")
"""A job of a search."""


def open_study(journal: Path, direction: str = "maximize") -> optuna.Study:
    return optuna.create_study(
        storage=journal_storage(journal), study_name=STUDY, direction=direction, load_if_exists=True
    )


# What is searched


def space(*typed: str, **params: str) -> dict[str, BaseDistribution]:
    return search_space(PARSER.parse_overrides(list(typed)), PARSER.parse_overrides, params)


@pytest.mark.parametrize(
    ("typed", "drawn"),
    [
        ("interval(0.1,0.5)", FloatDistribution(0.1, 0.5)),
        ("interval(1,5)", FloatDistribution(1, 5)),
        ("int(interval(1,5))", IntDistribution(1, 5)),
        ("tag(log,interval(1e-5,1e-1))", FloatDistribution(1e-5, 1e-1, log=True)),
        ("tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("range(1,8,3)", IntDistribution(1, 7, step=3)),
        ("range(0.1,0.45,0.1)", FloatDistribution(0.1, 0.4, step=0.1)),
        ("choice(sgd,adamw)", CategoricalDistribution(["sgd", "adamw"])),
        ("0.1,0.2", CategoricalDistribution(["0.1", "0.2"])),
        ("[8],[16,8]", CategoricalDistribution(["[8]", "[16,8]"])),
    ],
)
def test_hydras_grammar_says_what_is_drawn(typed: str, drawn: BaseDistribution) -> None:
    assert space(f"some.key={typed}") == {"some.key": drawn}


def test_what_is_swept_takes_the_place_of_the_given_space() -> None:
    given = {"a": "interval(0,1)", "b": "interval(0,2)"}
    assert list(space(**given)) == ["a", "b"]
    assert list(space("c=1", "b=0.5", **given)) == ["a"]
    assert list(space("c=1,2", **given)) == ["c"]


@pytest.mark.parametrize(
    ("typed", "parts"),
    [
        ("seed=0,1", ["seed can't be searched"]),
        ("split.fold=0,1", ["split.fold can't be searched"]),
        ("split=kfold,stratified", ["split can't be searched"]),
        ("a=tag(loud,interval(0,1))", ["a=tag(loud,interval(0,1))", "log"]),
        ("a=tag(log,choice(1,2))", ["a=tag(log,choice(1,2))", "interval"]),
        ("a=tag(log,interval(0,1))", ["a=tag(log,interval(0,1))", "low"]),
        ("a=interval(3,1)", ["a=interval(3,1)"]),
        ("a=1", ["nothing is searched"]),
        ("++seed=0,1", ["seed can't be searched"]),
        ("+split.fold=0,1", ["split.fold can't be searched"]),
        ("a=shuffle(1,2,3)", ["a=shuffle(1,2,3)", "leave out shuffle"]),
        ("a=range(5,1)", ["a=range(5,1) holds no value"]),
        ("optimizer=glob(*)", ["optimizer=glob(*) can't be searched"]),
    ],
)
def test_what_cannot_be_searched_is_named(typed: str, parts: list[str]) -> None:
    with told(*parts):
        space(typed)


# Which jobs are run


@dataclass
class Jobs:
    """Jobs that take no time; the value of each is that of a function of its overrides."""

    folder: Path
    value: Callable[[dict[str, str]], float] = lambda job: float(job["model.head.dropout"])
    run: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    stop_before: int | None = None

    def __call__(self, *typed: str, trials: int, **settings: Any) -> list[FrozenTrial]:
        """Search, and return the trials that stand in the study."""
        overrides = [word for word in typed if word.startswith("sweep.")]
        config = composed(*overrides)
        values = OmegaConf.load(conf_folder() / "hydra/sweeper/optuna.yaml")
        values.update({"trials": trials, "startup": 3, **settings})
        hydra = {"sweeper": values, "sweep": {"dir": str(self.folder)}}
        whole = DictConfig({**config, "hydra": hydra})
        engine = Engine(PARSER.parse_overrides, lambda _: JOB.copy(), self._launch)
        search(whole, list(typed or SPACE), engine)
        return open_study(self.folder / JOURNAL).get_trials()

    def _launch(self, jobs: Sequence[Sequence[str]], first: int) -> Sequence[Any]:
        ended = []
        for number, job in enumerate(jobs, first):
            if number == self.stop_before:
                raise KeyboardInterrupt
            values = dict(word.split("=", 1) for word in job)
            assert values["sweep.trial"] == str(number)
            assert json.loads(values["sweep.study"]) == str(self.folder / JOURNAL)
            self.run.append((number, {k: v for k, v in values.items() if "sweep" not in k}))
            ended.append(type("JobReturn", (), {"return_value": self.value(values)}))
        return ended

    @property
    def numbers(self) -> list[int]:
        return [number for number, _ in self.run]


def test_each_trial_is_the_job_of_its_number(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "s")
    trials = jobs(*SPACE, "trainer=cpu", trials=4)
    assert jobs.numbers == [0, 1, 2, 3]
    for trial, (_, job) in zip(trials, jobs.run, strict=True):
        assert trial.state == TrialState.COMPLETE
        assert trial.value == float(job["model.head.dropout"]) == trial.params["model.head.dropout"]
        assert job.keys() == {"trainer", "model.head.dropout", "optimizer.momentum"}
        assert 0.1 <= trial.value <= 0.5


@pytest.mark.parametrize(("metric", "sign"), [("f1", 1), ("brier", -1)])
def test_it_goes_to_the_better_values(tmp_path: Path, metric: str, sign: int) -> None:
    jobs = Jobs(tmp_path / "s")
    pruning = ["sweep.pruning=null"]
    trials = jobs(SPACE[0], f"sweep.metric={metric}", *pruning, trials=24, startup=8)
    values = [sign * float(job["model.head.dropout"]) for _, job in jobs.run]
    assert sum(values[-8:]) > sum(values[:8]) + 0.1 * 8
    assert len(trials) == 24


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("stop", [0, 2, 4, 5])
def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(
    tmp_path: Path, stop: int, batch: int
) -> None:
    whole, halves = Jobs(tmp_path / "a"), Jobs(tmp_path / "b", stop_before=stop)
    whole(trials=7, batch=batch)
    with pytest.raises(KeyboardInterrupt):
        halves(trials=7, batch=batch)
    halves.stop_before = None
    halves.run = [each for each in halves.run if each[0] < stop - stop % batch]
    halves(trials=7, batch=batch)
    assert halves.run == whole.run


def test_jobs_in_the_middle_that_were_killed_keep_their_numbers(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "s", stop_before=0)
    with pytest.raises(KeyboardInterrupt):
        jobs(trials=5, batch=5)
    study = open_study(tmp_path / "s" / JOURNAL)
    for number in (0, 2):
        study.tell(number, 0.3)
    jobs.stop_before = None
    jobs(trials=5)
    assert jobs.numbers == [1, 3, 4]


def test_a_trial_killed_while_it_was_proposed_is_replaced(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "s")
    jobs(trials=2)
    open_study(tmp_path / "s" / JOURNAL).ask()  # without the values
    trials = jobs(trials=4)
    assert jobs.numbers == [0, 1, 3, 4]
    assert [trial.state for trial in trials].count(TrialState.FAIL) == 1


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    whole, cut = Jobs(tmp_path / "a"), Jobs(tmp_path / "b")
    whole(trials=4)
    cut(trials=3)
    with (tmp_path / "b" / JOURNAL).open("a") as file:
        file.write('{"op_code": 4, "wor')
    cut(trials=4)
    assert cut.run == whole.run


def test_a_finished_search_runs_nothing_and_more_trials_go_on(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "s")
    jobs(trials=3)
    jobs(trials=3)
    assert jobs.numbers == [0, 1, 2]
    jobs(trials=4)
    assert jobs.numbers == [0, 1, 2, 3]


def test_a_failed_job_counts_and_is_not_proposed_as_good(tmp_path: Path) -> None:
    nan = float("nan")
    jobs = Jobs(tmp_path / "s", lambda job: nan if job["optimizer.momentum"] == "0.9" else 0.5)
    trials = jobs(trials=6)
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert 0 < len(failed) < 6
    assert len(trials) == len(jobs.run) == 6
    assert all(trial.params["optimizer.momentum"] == "0.9" for trial in failed)


@pytest.mark.parametrize(
    "typed",
    [
        ("model.head.dropout=interval(0.1,0.6)",),
        (*SPACE, "sweep.metric=auroc"),
        ("model.head.dropout=0.1,0.2",),
    ],
)
def test_another_search_is_not_resumed(tmp_path: Path, typed: tuple[str, ...]) -> None:
    jobs = Jobs(tmp_path / "s")
    jobs(trials=1)
    with told(str(tmp_path / "s"), "holds a search of another"):
        jobs(*typed, trials=2)
    assert jobs.numbers == [0]


@pytest.mark.parametrize(
    ("settings", "part"),
    [({"trials": 0}, "hydra.sweeper.trials=0"), ({"trials": 2, "batch": 1.5}, "batch=1.5")],
)
def test_wrong_settings_are_named(tmp_path: Path, settings: dict[str, Any], part: str) -> None:
    with told(part):
        Jobs(tmp_path / "s")(**settings)
    assert not (tmp_path / "s").exists()


def test_a_metric_that_training_does_not_compute_prunes_nothing(tmp_path: Path) -> None:
    with told("sweep.metric=brier", "sweep.pruning=null"):
        Jobs(tmp_path / "s")(*SPACE, "sweep.metric=brier", trials=1)


def test_without_optuna_it_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with told("pip install", "idc-lightning[optuna]"):
        Jobs(tmp_path / "s")(trials=1)


# Jobs that are stopped early


def of_trial_config(folder: Path, number: int) -> SweepConfig:
    pruning = ("sweep.pruning.trials=2", "sweep.pruning.epochs=2")
    place = (f"sweep.study={folder / JOURNAL}", f"sweep.trial={number}")
    return config_of(*pruning, *place).sweep


def of_trial(folder: Path, number: int) -> Pruning:
    return Pruning(of_trial_config(folder, number), folder / str(number))


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    """Two jobs that have ended, and a third one that was begun."""
    study = open_study(tmp_path / JOURNAL, direction="maximize")
    for level in (0.5, 0.7):
        trial = study.ask()
        for epoch in range(4):
            trial.report(level, epoch)
        study.tell(trial, level)
    study.ask()
    return study


@pytest.mark.parametrize(
    ("values", "epochs"),
    [
        ([0.1, 0.1, 0.1, 0.1], 2),
        ([0.1, 0.65, 0.1, 0.1], 4),  # its best is above the median
        ([0.9, 0.1, 0.1, 0.1], 4),
        ([0.55, 0.59, 0.5, 0.9], 2),
        ([0.1, 0.1], 2),  # nothing is left to stop
    ],
)
def test_a_job_below_the_median_of_the_others_is_stopped(
    tmp_path: Path, study: optuna.Study, values: list[float], epochs: int
) -> None:
    pruning = of_trial(tmp_path, 2)
    trainer = fit(tmp_path, [pruning], "dev/f1", values)
    trial = study.get_trials()[2]
    stopped = epochs if epochs < len(values) else None
    assert trainer.current_epoch == epochs
    assert pruning.pruned_after == trial.user_attrs.get(PRUNED) == stopped
    assert trial.intermediate_values == pytest.approx(dict(enumerate(values[:epochs])))
    assert trial.state == TrialState.RUNNING


def test_epochs_that_are_repeated_after_a_kill_decide_nothing_new(
    tmp_path: Path, study: optuna.Study
) -> None:
    fit(tmp_path, [of_trial(tmp_path, 2)], "dev/f1", [0.9, 0.8, 0.8])
    fit(tmp_path, [of_trial(tmp_path, 2)], "dev/f1", [0.1, 0.1, 0.1, 0.85])
    told = study.get_trials()[2]
    assert told.intermediate_values == pytest.approx({0: 0.9, 1: 0.8, 2: 0.8, 3: 0.85})
    assert PRUNED not in told.user_attrs


def test_a_job_that_was_killed_after_it_was_stopped_is_stopped_again(
    tmp_path: Path, study: optuna.Study
) -> None:
    for _ in range(2):
        pruning = of_trial(tmp_path, 2)
        trainer = fit(tmp_path, [pruning], "dev/f1", [0.1, 0.2, 0.3, 0.4])
        assert (trainer.current_epoch, pruning.pruned_after) == (2, 2)
    assert study.get_trials()[2].user_attrs[PRUNED] == 2


def test_a_stopped_job_that_is_prolonged_was_not_stopped(
    tmp_path: Path, study: optuna.Study
) -> None:
    stopped, last = of_trial(tmp_path, 2), ModelCheckpoint(tmp_path, filename="last")
    fit(tmp_path, [stopped, last], "dev/f1", [0.1, 0.1, 0.1])
    assert stopped.pruned_after == 2
    study.tell(2, state=TrialState.PRUNED)
    prolonged = of_trial(tmp_path, 2)
    trainer = fit(
        tmp_path, [prolonged], "dev/f1", [0.1] * 5, ckpt_path=next(tmp_path.glob("last*.ckpt"))
    )
    assert (trainer.current_epoch, prolonged.pruned_after) == (5, None)


def test_a_job_that_was_moved_out_of_its_search_is_left_alone(
    tmp_path: Path, study: optuna.Study
) -> None:
    pruning = Pruning(of_trial_config(tmp_path, 2), tmp_path.parent / "elsewhere" / "2")
    trainer = fit(tmp_path, [pruning], "dev/f1", [0.1, 0.1, 0.1, 0.1])
    assert trainer.current_epoch == 4
    assert study.get_trials()[2].intermediate_values == {}


@pytest.mark.parametrize("number", [1, 2])
def test_a_job_whose_end_is_known_or_whose_search_is_gone_is_left_alone(
    tmp_path: Path, study: optuna.Study, number: int
) -> None:
    pruning = of_trial(tmp_path, number)
    if number == 2:
        (tmp_path / JOURNAL).unlink()
    trainer = fit(tmp_path, [pruning], "dev/f1", [0.1, 0.1, 0.1, 0.1])
    assert trainer.current_epoch == 4
    assert pruning.pruned_after is None
    assert (tmp_path / JOURNAL).exists() == (number == 1)


# The command

SEARCH = ("-m", "hydra/sweeper=optuna", "hydra.sweep.dir=outputs/s", *SMALL)


def test_a_search_runs_jobs_stops_bad_ones_and_goes_on(command: Command) -> None:
    typed = (
        *SEARCH,
        "data.patches=480",
        "trainer.epochs=3",
        "scheduler.max_lr=choice(0.02,1e-7)",
        "sweep.metric=auroc",
        "sweep.pruning.trials=1",
        "sweep.pruning.epochs=2",
    )
    ended = command(*typed, "hydra.sweeper.trials=3")
    assert ended.code == 0, ended.err
    folder = command.folder / "outputs" / "s"
    ended = command(*typed, "hydra.sweeper.trials=4", "sweep.resume=true")
    assert ended.code == 0, ended.err
    assert "3 jobs were begun before" in ended.out
    trials = open_study(folder / JOURNAL).get_trials()
    runs = [json.loads((folder / str(n) / "results.json").read_text()) for n in range(4)]
    states = [trial.state for trial in trials]
    assert set(states) == {TrialState.COMPLETE, TrialState.PRUNED}
    for trial, run in zip(trials, runs, strict=True):
        if trial.state == TrialState.PRUNED:
            assert run["pruned_after"] == run["epochs"] == trial.user_attrs[PRUNED] == 2
        else:
            assert (run["pruned_after"], run["epochs"]) == (None, 3)
            assert trial.value == run["dev"]["auroc"]["value"]
    table = (folder / "leaderboard.csv").read_text().splitlines()
    assert table[0].startswith("rank,runs,scheduler.max_lr,dev_")
    assert len(table) == 1 + 4
    assert "stopped early by the search" in ended.out
    ended = command(*(word for word in typed if "sweeper" not in word), "sweep.resume=true")
    assert ended.code == 1
    assert "started with hydra/sweeper=optuna" in ended.err


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("model.head.droput=interval(0,1)", "did you mean model.head.dropout"),
        ("optimizer=sgd,adamw optimizer.nesterov=true,false", "belongs to optimizer=notebook and"),
        ("model.head.dropout=interval(1.5,2)", "model.head.dropout=1.5"),
        ("callbacks=lr_range_test", "scheduler.max_lr would be replaced by the range test"),
        ("scheduler=cosine", "conf/hydra/sweeper/optuna.yaml"),
        ("seed=0,1", "seed can't be searched"),
    ],
)
def test_what_every_job_would_refuse_is_refused_before_the_first(
    command: Command, typed: str, said: str
) -> None:
    ended = command(*SEARCH, *typed.split())
    assert (ended.code, ended.err.count("\n"), ended.left) == (1, 1, [])
    assert said in ended.err


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("hydra.sweeper.trials=3", "add hydra/sweeper=optuna"),
        ("model.head.dropout=interval(0,1)", "add hydra/sweeper=optuna"),
        ("trial=3", "unknown key trial"),
    ],
)
def test_what_only_a_search_knows_is_told_to_other_sweeps(
    command: Command, typed: str, said: str
) -> None:
    ended = command("-m", *SMALL, "hydra.sweep.dir=outputs/s", typed)
    assert (ended.code, ended.err.count("\n"), ended.left) == (1, 1, [])
    assert said in ended.err
    assert "sweep.trial" not in ended.err


@pytest.mark.parametrize(
    "name", ["a b", "a'b", 'a"b', "a=b", "back\\slash", "end\\", "${x}", "[a]"]
)
def test_any_path_can_be_told_to_a_job(name: str) -> None:
    config = config_of(override("sweep.study", f"/tmp/{name}"), "sweep.trial=0")
    assert config.sweep.study == Path("/tmp", name)


def test_commands_that_do_not_train_are_not_searched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = Command(tmp_path, capsys, monkeypatch, evaluate)
    ended = command("-m", "hydra/sweeper=optuna", "run=a", "hydra.sweep.dir=outputs/s")
    assert ended.code == 1
    assert "for idc-train" in ended.err


def test_values_of_a_search_need_one(command: Command) -> None:
    ended = command("-m", *SMALL, "seed=0,1", "sweep.pruning=null", "hydra.sweep.dir=outputs/s")
    assert ended.code == 1
    assert "sweep.pruning has no effect without a search" in ended.err
