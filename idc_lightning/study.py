"""What a search has learned so far: Optuna's study, as lines of JSON in the folder of the sweep."""

import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from idc_lightning.config import SweepConfig
from idc_lightning.errors import IDCError
from idc_lightning.results.leaderboard import LOWER

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.storages import JournalStorage

JOURNAL = "optuna.journal"
"""File of the study in the folder of the sweep; optuna-dashboard shows it, too."""

STUDY = "search"
"""Name of the study in its file."""

PRUNED = "pruned_after"
"""Attribute of a trial that was stopped early: the number of its epochs."""


def require_optuna() -> None:
    """Raise an IDCError if Optuna isn't installed."""
    if importlib.util.find_spec("optuna") is None:
        raise IDCError(
            "hydra/sweeper=optuna needs Optuna, which isn't installed: pip install "
            '"idc-lightning[optuna]"'
        )


def journal_storage(journal: Path) -> "JournalStorage":
    """The storage of a study in a file."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    lock = JournalFileOpenLock(str(journal))  # which a killed process doesn't hold for long
    return JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))


def begin_study(
    journal: Path, sweep: SweepConfig, space: dict[str, "BaseDistribution"]
) -> "optuna.Study":
    """The study of a search, which is made if it isn't there.

    Args:
        journal: Its file.
        sweep: Says which metric is searched for.
        space: What is drawn, by key.

    Raises:
        IDCError: If that of another search is there.
    """
    import optuna
    from optuna.distributions import distribution_to_json

    begun = journal.is_file()
    if begun:
        _mend(journal)
    study = optuna.create_study(
        storage=journal_storage(journal),
        study_name=STUDY,
        direction="minimize" if sweep.metric in LOWER else "maximize",
        load_if_exists=True,
    )
    searched = {
        "metric": sweep.metric,
        "space": {key: json.loads(distribution_to_json(each)) for key, each in space.items()},
    }
    for name, value in searched.items():
        before = study.user_attrs.get(name)
        if before is None:
            study.set_user_attr(name, value)
        elif before != value:
            raise IDCError(
                f"{journal.parent} holds a search of another {name}: {before}, and now {value}"
            )
    if begun:
        print(f"search of {journal.parent}: {len(study.trials)} jobs were begun before", flush=True)
    return study


def _mend(journal: Path) -> None:
    """Drop a line whose writer was killed, to which the next one would be joined."""
    os.truncate(journal, journal.read_bytes().rfind(b"\n") + 1)
