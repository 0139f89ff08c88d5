"""A whole run, from the command line to the run folder."""

import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_command import SMALL, Command, Ended
from helpers_model import TINY, config_of, told, write_tissue
from helpers_process import TRAIN, run_script
from helpers_runs import QUICK
from sklearn import metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torchvision.models import get_model

from idc_lightning.classifier import IDCClassifier, load_classifier
from idc_lightning.data.augment import as_float
from idc_lightning.data.datamodule import IDCDataModule
from idc_lightning.data.split import read_splits, split_hash
from idc_lightning.metrics import idc_probability
from idc_lightning.results.sealed import read_results
from idc_lightning.train import train

NAMES = {
    "f1",
    "balanced_accuracy",
    "precision",
    "recall",
    "specificity",
    "auroc",
    "average_precision",
}
CALIBRATION = {"brier", "expected_calibration_error"}
FIGURES = {
    "confusion",
    "dev_metrics",
    "learning_rate",
    "loss",
    "patient_f1",
    "patients",
    "probabilities",
    "ranking",
    "reliability",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small run of two epochs, as another process leaves it."""
    here = tmp_path_factory.mktemp("run")
    small = [value for value in SMALL if value != "report=none"]
    typed = (*small, "trainer.epochs=2", "hydra.run.dir=run")
    ended = run_script(TRAIN, typed, within=here, environment=os.environ)
    assert ended.returncode == 0, ended.stderr
    assert "AUROC" in ended.stdout
    assert f"run folder: {here}/run" in ended.stdout
    assert ended.stderr == ""
    return here / "run"


@pytest.fixture
def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def table(folder: Path, split: str) -> pd.DataFrame:
    return pd.read_csv(folder / "predictions" / f"{split}.csv", dtype={"patient_id": str})


def test_the_run_folder_holds_what_it_should(folder: Path) -> None:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    events = {path for path in found if path.startswith("tensorboard/events.")}
    figures = {path for path in found if path.startswith("figures/")}
    galleries = {path for path in figures if re.search(r"(dev|test)_false_(posi|nega)tives", path)}
    landscapes = {path for path in figures if path.startswith("figures/landscapes/")}
    patients = {split: sorted(set(table(folder, split)["patient_id"])) for split in ("dev", "test")}
    assert landscapes == {
        f"figures/landscapes/{split}_{patient}.png"
        for split, names in patients.items()
        for patient in names
    }
    assert figures - galleries - landscapes == {f"figures/{name}.png" for name in FIGURES}
    assert events
    assert found - events - figures == {
        ".hydra/.lock",
        ".hydra/config.yaml",
        ".hydra/hydra.yaml",
        ".hydra/overrides.yaml",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "hparams.yaml",
        "metrics.csv",
        "predictions/dev.csv",
        "predictions/patients.csv",
        "predictions/test.csv",
        "report.html",
        "results.json",
        "splits.csv",
        "tensorboard/hparams.yaml",
    }


def test_results_say_all_that_they_should(results: dict[str, Any]) -> None:
    for split in ("dev", "test"):
        assert set(results[split]) == NAMES | CALIBRATION
        assert set(results["at_0.5"][split]) == NAMES - {"auroc", "average_precision"}
        assert results["patient_mean"][split]["auroc"]["patients"] <= 2
        for interval in results[split].values():
            assert set(interval) == {"value", "low", "high"}
    assert results["patients"] == {"train": 8, "dev": 2, "test": 2}
    assert sum(results["patches"].values()) == 240
    assert 0 < results["threshold"] < 1
    assert results["temperature"] > 0
    assert results["lr_range_test"] is None
    assert results["epochs"] == 2
    assert 0 < results["seconds"] < 300
    assert results["images_per_second"] > 1
    assert results["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert len(results["config_hash"]) == len(results["split_hash"]) == 64


def test_predictions_hold_each_patch_once_and_give_the_metrics(
    folder: Path, results: dict[str, Any]
) -> None:
    for split in ("dev", "test"):
        rows = table(folder, split)
        assert list(rows) == ["patient_id", "x", "y", "true", "predicted", "proba"]
        assert len(rows) == results["patches"][split]
        assert not rows.duplicated(["patient_id", "x", "y"]).any()
        true, proba = rows["true"], rows["proba"]
        predicted = (proba >= results["threshold"]).astype(int)
        assert (rows["predicted"] == predicted).all()
        expected = {
            "f1": metrics.f1_score(true, predicted),
            "balanced_accuracy": metrics.balanced_accuracy_score(true, predicted),
            "recall": metrics.recall_score(true, predicted),
            "auroc": metrics.roc_auc_score(true, proba),
            "average_precision": metrics.average_precision_score(true, proba),
        }
        for name, value in expected.items():
            assert results[split][name]["value"] == pytest.approx(value, abs=1e-6), name
        at_half = metrics.f1_score(true, proba >= 0.5)
        assert results["at_0.5"][split]["f1"] == pytest.approx(at_half)


def test_the_decision_is_that_of_dev_and_stands_in_the_checkpoint(
    folder: Path, results: dict[str, Any]
) -> None:
    model = load_classifier(folder / "checkpoints" / "best.ckpt")
    decision = {name: results[name] for name in ("temperature", "bias", "threshold", "bandwidth")}
    assert asdict(model.decision) == decision
    dev = table(folder, "dev")
    best = max(metrics.f1_score(dev["true"], dev["proba"] >= edge) for edge in dev["proba"])
    assert results["dev"]["f1"]["value"] == pytest.approx(best)
    assert not load_classifier(folder / "checkpoints" / "last.ckpt").decided


def test_patients_are_judged_one_by_one(folder: Path, results: dict[str, Any]) -> None:
    rows = pd.read_csv(folder / "predictions" / "patients.csv", dtype={"patient_id": str})
    for split in ("dev", "test"):
        judged = rows[rows["split"] == split].set_index("patient_id")
        predictions = table(folder, split)
        assert set(judged.index) == set(predictions["patient_id"])
        for patient, patches in predictions.groupby("patient_id"):
            share = (patches["true"] == patches["predicted"]).mean()
            assert judged.loc[patient, "correct"] == pytest.approx(share, rel=1e-5)
        mean = results["patient_mean"][split]["correct"]
        assert mean == {"value": pytest.approx(judged["correct"].mean(), rel=1e-5), "patients": 2}


def test_tensorboard_shows_decisions_and_pictures(folder: Path) -> None:
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    tags = events.Tags()
    assert {"figures/confusion", "figures/reliability"} <= set(tags["images"])
    landscapes = {tag for tag in tags["images"] if tag.startswith("landscapes/")}
    assert len(landscapes) == 4
    assert {"dev/precision_recall", "test/precision_recall"} <= set(tags["tensors"])


def test_splits_are_those_of_the_predictions_and_the_checkpoint(
    folder: Path, results: dict[str, Any]
) -> None:
    splits = read_splits(folder / "splits.csv")
    assert len(splits) == 12
    assert split_hash(splits) == results["split_hash"]
    for split in ("dev", "test"):
        assert set(table(folder, split)["patient_id"]) == set(splits.index[splits == split])
    content = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert content["IDCDataModule"]["split_hash"] == results["split_hash"]


def test_losses_rates_and_metrics_are_logged_once_for_each_step(folder: Path) -> None:
    rows = pd.read_csv(folder / "metrics.csv")
    steps = rows.dropna(subset="train/loss")["step"].tolist()
    assert steps == list(range(2 * (rows["train/loss"].notna().sum() // 2)))
    assert rows["lr-SGD"].notna().sum() == len(steps)
    for name in NAMES | {"loss"}:  # those of epochs are computed at 0.5
        assert rows[f"dev/{name}"].notna().sum() == 2
        assert rows[f"test/{name}"].notna().sum() == 1
        assert rows[f"train/{name if name != 'loss' else 'loss_epoch'}"].notna().sum() == 2
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "lr-SGD", "train/f1", "dev/f1", "dev/loss", "test/f1"} <= tags
    assert [event.step for event in events.Scalars("train/loss")] == steps
    assert [len(events.Scalars(name)) for name in ("dev/f1", "test/f1")] == [2, 1]


def test_hyperparameters_stand_beside_final_metrics(folder: Path, results: dict[str, Any]) -> None:
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert "_hparams_/session_start_info" in events.summary_metadata
    for split in ("dev", "test"):
        (event,) = events.Scalars(f"final/{split}_auroc")
        assert event.value == pytest.approx(results[split]["auroc"]["value"])


def test_the_best_checkpoint_alone_gives_the_predictions(folder: Path) -> None:
    best = IDCClassifier.load_from_checkpoint(
        folder / "checkpoints" / "best.ckpt", weights_only=True
    ).eval()
    rows = pd.read_csv(folder / "metrics.csv")
    epochs = rows.dropna(subset="dev/f1")
    content = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    # Of equal values the first is the best.
    assert content["epoch"] == epochs["epoch"].iloc[int(epochs["dev/f1"].argmax())]
    image = torch.rand(2, 3, 50, 50)
    again = load_classifier(folder / "checkpoints" / "best.ckpt")
    assert torch.equal(best(image), again(image))


def test_checkpoints_hold_the_weights_that_were_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    # At a small rate, so that no probability is exactly 0 or 1.
    small = (*SMALL, "data.patches=480", "trainer.epochs=3", "trainer.precision=32-true")
    overrides = (*small, "scheduler.max_lr=0.001")
    for name, decay in (("plain", "null"), ("averaged", "0.5")):
        decayed = (f"callbacks.ema_decay={decay}", f"hydra.run.dir={name}")
        small_run(tmp_path, capsys, monkeypatch, *overrides, *decayed)
        best = load_classifier(tmp_path / name / "checkpoints" / "best.ckpt")
        config = config_of(*overrides)
        data = IDCDataModule(config.data, config.split, seed=0, cache=config.cache)
        data.setup()
        with torch.inference_mode():
            logits = [best(as_float(batch["image"])) for batch in data.eval_dataloader("dev")]
        judged = torch.cat(logits).flatten(0, -2)
        proba = best.decision.probability(judged).numpy()
        assert table(tmp_path / name, "dev")["proba"].to_numpy() == pytest.approx(proba, abs=1e-5)
        found.append(idc_probability(judged).numpy())
    assert np.abs(found[0] - found[1]).max() > 1e-3


def small_run(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *overrides: str,
) -> Ended:
    ended = Command(tmp_path, capsys, monkeypatch)(*overrides)
    assert ended.code == 0, ended.err
    return ended


def test_the_same_run_gives_the_same_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        small_run(tmp_path, capsys, monkeypatch, *SMALL, f"seed={seed}", f"hydra.run.dir={name}")
        content = json.loads((tmp_path / name / "results.json").read_text())
        predictions = (tmp_path / name / "predictions" / "test.csv").read_bytes()
        logged = (tmp_path / name / "metrics.csv").read_bytes()
        found.append((content["dev"], content["test"], predictions, logged))
    assert found[0] == found[1]
    assert found[0][-1] != found[2][-1]


def test_test_is_read_once_and_after_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bool]] = []
    serve = IDCDataModule.eval_dataloader

    def watched(self: IDCDataModule, split: str) -> Any:
        assert self.trainer is not None
        ended = self.trainer.current_epoch == self.trainer.max_epochs
        asked.append((split, ended))
        return serve(self, split)

    monkeypatch.setattr(IDCDataModule, "eval_dataloader", watched)
    small_run(tmp_path, capsys, monkeypatch, *SMALL)
    assert [entry for entry in asked if entry[0] == "test"] == [("test", True)]


@pytest.mark.parametrize("launcher", ["basic", "joblib", "ray", "submitit_local"])
def test_a_sweep_gives_each_job_its_folder(
    launcher: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plugin = {"ray": "ray", "submitit_local": "submitit"}.get(launcher)
    if plugin is not None:
        engine = pytest.importorskip(plugin, reason=f"the extra with {plugin} is absent")
    jobs = ("-m", *SMALL, f"hydra/launcher={launcher}", "model.head.dropout=0.1,0.6")
    jobs += ("model.compile=false",)  # which Hydra gives to the jobs as False
    ended = small_run(tmp_path, capsys, monkeypatch, *jobs)
    assert len(ended.left) == 1
    sweep = tmp_path / "outputs" / ended.left[0]
    rates = {}
    for job in ("0", "1"):
        content = torch.load(sweep / job / "checkpoints" / "best.ckpt", weights_only=True)
        rates[job] = content["hyper_parameters"]["model"]["head"]["dropout"]
        assert (sweep / job / "results.json").is_file()
    assert rates == {"0": 0.1, "1": 0.6}
    for job, rate in rates.items():  # each is a row of HParams, with its metrics
        events = EventAccumulator(str(sweep / job / "tensorboard")).Reload()
        shown = {
            name: HParamsPluginData.FromString(metadata.plugin_data.content)
            for name, metadata in events.summary_metadata.items()
            if name.startswith("_hparams_/")
        }
        infos = shown["_hparams_/experiment"].experiment.hparam_infos
        assert [info.name for info in infos if info.differs] == ["model/head/dropout"]
        assert {"seed", "optimizer/momentum"} < {info.name for info in infos}
        values = shown["_hparams_/session_start_info"].session_start_info.hparams
        assert values["model/head/dropout"].number_value == rate
        results = read_results(sweep / job / "results.json")
        (final,) = events.Scalars("final/test_auroc")
        assert final.value == pytest.approx(results["test"]["auroc"]["value"])
    if launcher == "ray":
        engine.shutdown()


def test_the_notebook_trains_the_head_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights.pth"
    torch.manual_seed(5)
    net = get_model("shufflenet_v2_x0_5")
    torch.save(net.state_dict(), weights)
    small_run(
        tmp_path,
        capsys,
        monkeypatch,
        "experiment=notebook",
        *SMALL,
        f"model.weights={weights}",
        "callbacks.lr_range_test.apply=false",
        "hydra.run.dir=run",
    )
    assert (tmp_path / "run" / "learning_rate_search.csv").is_file()
    trained = load_classifier(tmp_path / "run" / "checkpoints" / "last.ckpt")
    backbone = trained.network.backbone.state_dict()
    assert backbone
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in backbone.items())
    rates = pd.read_csv(tmp_path / "run" / "metrics.csv")["lr-SGD"].dropna()
    assert np.all(np.diff(rates) > 0)  # the first of the half-cycles of 30 steps
    assert rates.iloc[0] == pytest.approx(1e-6)


@pytest.mark.parametrize("debug", ["fast", "profile"])
def test_debug_runs_end_with_all_results(
    debug: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [value for value in SMALL if not value.startswith(("data.batch", "trainer."))]
    ended = small_run(tmp_path, capsys, monkeypatch, f"debug={debug}", *small, "hydra.run.dir=run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    for split in ("dev", "test"):
        assert len(table(tmp_path / "run", split)) == results["patches"][split] > 0
    assert ("run_training_epoch" in ended.out) == (debug == "profile")


def test_a_net_that_overfits_learns_by_heart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_run(
        tmp_path,
        capsys,
        monkeypatch,
        "debug=overfit",
        *[value for value in SMALL if not value.startswith("trainer.epochs")],
        "data.sample=64",
        "data.batch_size=16",
        "hydra.run.dir=run",
    )
    rows = pd.read_csv(tmp_path / "run" / "metrics.csv")
    # Batches of 16 make single epochs worse, whichever way the hardware rounds.
    assert rows["train/f1"].dropna().iloc[-10:].median() > 0.99


def test_dev_without_a_class_chooses_no_epoch_but_by_the_loss(tmp_path: Path) -> None:
    tissue = write_tissue(tmp_path)
    for patient in ("104", "105"):
        shutil.rmtree(tmp_path / "tissue" / patient / "1")
    small = (*TINY, *tissue, *QUICK, "trainer.epochs=1")
    by_loss = (*small, "callbacks.checkpoint.monitor=dev/loss")
    with told("dev has no IDC patch, so dev/f1 doesn't tell which epoch", "monitor=dev/loss"):
        train(config_of(*small), tmp_path / "run")
    with told("dev/auroc doesn't tell", "callbacks.early_stopping.monitor=dev/loss"):
        stops = ("callbacks=early_stopping", "callbacks.early_stopping.monitor=dev/auroc")
        train(config_of(*by_loss, *stops), tmp_path / "run")
    with told("dev has no IDC patch, so its f1 doesn't tell which job is the best"):
        train(config_of(*by_loss, "sweep.study=x", "sweep.trial=0"), tmp_path / "run")
    results = train(config_of(*by_loss), tmp_path / "run")
    assert results["notes"][-1].startswith("dev has no IDC patch, so that temperature, bias and")
    assert (results["temperature"], results["bias"], results["threshold"]) == (1, 0, 0.5)
