"""Loggers of losses and metrics in the run folder, whose files a resumed run continues.

What was logged after the checkpoint that a run goes on from is left out, since those steps are
taken again; so no step is missing and none stands there twice.
"""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from idc_lightning.config import LoggerConfig
from idc_lightning.errors import IDCError
from idc_lightning.files import write_text


def build_loggers(
    config: LoggerConfig, folder: Path, *, first_step: int, learns: bool = True
) -> list[Logger]:
    """Loggers of a run.

    Args:
        config: Which.
        folder: The run folder.
        first_step: Step that is logged first, above 0 in a resumed run.
        learns: Whether there is any step; else there are no curves for metrics.csv.
    """
    loggers: list[Logger] = []
    if config.tensorboard:
        # Hyperparameters are logged with the final metrics, by `train`.
        loggers.append(
            TensorBoardLogger(
                folder,
                name="tensorboard",
                version="",
                default_hp_metric=False,
                purge_step=first_step,
            )
        )
    if config.csv and learns:
        loggers.append(Table(folder, first_step=first_step))
    return loggers


def flush(loggers: Iterable[Logger]) -> None:
    """Write what was logged so far, so that it outlives the process."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
        else:
            logger.save()


class Table(CSVLogger):
    """``metrics.csv``, one row for each call.

    Args:
        folder: The run folder.
        first_step: Rows of this step and of later ones, left by a run that is resumed, go.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        super().__init__(folder, name="", version="")
        self._first_step = first_step

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """What writes the file; made on the first call."""
        if self._experiment is None:
            self._experiment = _Rows(Path(self.log_dir), first_step=self._first_step)
        assert isinstance(self._experiment, ExperimentWriter)
        return self._experiment


class _Rows(ExperimentWriter):
    """As Lightning's own, which would remove the file of a run that is resumed."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        super().__init__(str(folder))
        path = Path(self.metrics_file_path)
        if path.is_file():
            self._keep_until(path, first_step)

    def save(self) -> None:
        """Append what was logged.

        Raises:
            IDCError: If it can't be written; half a row may be, which is left out on resuming.
        """
        try:
            super().save()
        except OSError as error:
            raise IDCError(f"can't write {self.metrics_file_path}: {error.strerror}") from error

    def _keep_until(self, path: Path, first_step: int) -> None:
        """Drop rows from a step on, and a last one that was being written.

        Raises:
            IDCError: If the file is damaged.
        """
        try:
            whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
            reader = csv.DictReader(io.StringIO(whole), strict=True)
            rows = [row for row in reader if _step(row) < first_step]
        except (ValueError, KeyError, csv.Error) as error:
            raise IDCError(
                f"{path} is damaged: delete it, to go on without the curves so far"
            ) from error
        if not rows:
            path.unlink()
            return
        self.metrics_keys = list(reader.fieldnames or ())
        self._write(rows)

    def _check_log_dir_exists(self) -> None:
        """The folder may hold other files, and those of a run that is resumed."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Give the file more columns, in a moment."""
        with Path(self.metrics_file_path).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        self._write(rows)

    def _write(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=self.metrics_keys)
        writer.writeheader()
        writer.writerows(rows)
        write_text(Path(self.metrics_file_path), text.getvalue())


def _step(row: dict[str, str]) -> int:
    """The step of a row of metrics.csv, whose values are numbers or empty.

    Raises:
        ValueError: If one isn't, or there are more or fewer of them than columns.
        KeyError: If it has no step.
    """
    if None in row or None in row.values():  # so DictReader says it
        raise ValueError("a row has more or fewer values than there are columns")
    for value in row.values():
        float(value or 0)
    return int(row["step"])
