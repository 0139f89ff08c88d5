"""Patches that are judged in sight of their neighbours, from training to new tissue."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_model import TINY, config_of, told, write_tissue
from helpers_runs import QUICK, evaluation, prediction, trained

from idc_lightning.classifier import IDCClassifier, load_classifier
from idc_lightning.config import AnyOptimizer, AnyScheduler, ModelConfig
from idc_lightning.data.grid import NO_CELL, NO_LABEL, PATCH
from idc_lightning.evaluate import evaluate
from idc_lightning.models.context import GridContext
from idc_lightning.predict import predict
from idc_lightning.ranks import ALONE
from idc_lightning.results.sealed import read_results
from idc_lightning.train import train
from idc_lightning.training import build_data, build_model


def sections(*overrides: str) -> tuple[ModelConfig, AnyOptimizer, AnyScheduler]:
    config = config_of(*overrides)
    return config.model, config.optimizer, config.scheduler


CROPS = ("data.crop=2", "data.batch_size=16")
GRID = ("model.context.name=grid", "model.context.width=8", "model.context.blocks=1")
SMOOTH = ("model.context.name=smooth", "callbacks.ema_decay=0.9")
PRETRAINED = (*CROPS, "pretraining=patches", "pretraining.epochs=1", "pretraining.batch_size=4")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on crops that learned on single patches first, to which nothing is done."""
    return trained(tmp_path_factory.mktemp("crops"), *PRETRAINED, *SMOOTH)


def predictions(folder: Path, split: str) -> pd.DataFrame:
    path = folder / "predictions" / f"{split}.csv"
    return pd.read_csv(path, dtype={"patient_id": str})


def network_of(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_classifier(run / "checkpoints" / "best.ckpt").network.state_dict())


def assert_equal(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert some.keys() == others.keys()
    assert all(torch.equal(some[name], value) for name, value in others.items())


# Training


@pytest.mark.parametrize("window", [2, 3, 32])
def test_each_patch_of_dev_and_test_is_judged_once(tmp_path: Path, window: int) -> None:
    places = (f"data.window={window}", f"data.margin={int(window == 3)}")
    own = trained(tmp_path, *CROPS, *places)
    said = read_results(own / "results.json")
    for split, patients in {"dev": ["104", "105"], "test": ["9"]}.items():
        table = predictions(own, split)
        assert not table.duplicated(["patient_id", "x", "y"]).any()
        assert table.groupby("patient_id").size().to_dict() == dict.fromkeys(patients, 9)
        assert said["patches"][split] == len(table)


def test_cells_without_a_patch_leave_loss_and_head_alone(tmp_path: Path) -> None:
    config = config_of(*TINY, *write_tissue(tmp_path), *CROPS, f"cache={tmp_path}")
    model, data = build_model(config), build_data(config, ALONE)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    image, cell, label = batch["image"].float() / 255, batch["cell"], batch["label"]
    judged = cell != NO_CELL
    assert 0 < judged.sum() < judged.numel()
    assert torch.equal(label == NO_LABEL, ~judged)
    with torch.no_grad():
        features = model.network.features(image)[judged]
        model.network.head.train()
        logits = model(image, cell=cell)
    assert logits.shape == (int(judged.sum()), 2)
    # The statistics of the head's first BatchNorm are those of the patches alone.
    linear, relu, norm, *_ = model.network.head
    mean = relu(linear(features)).mean(0).detach()
    torch.testing.assert_close(norm.running_mean, norm.momentum * mean)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(image, cell=cell), model(image)[judged])


# Neighbours


def logits_of(run: Path, folder: Path) -> pd.DataFrame:
    """What a run says of a folder of patches."""
    out = folder.with_name(f"{folder.name}-out")
    out.mkdir()
    return predict(prediction(run, folder), out).set_index(["patient_id", "x", "y"])["proba"]


def copied(run: Path, folder: Path, *patients: str) -> Path:
    for patient in patients:
        shutil.copytree(run.parent / "tissue" / patient, folder / patient)
    return folder


@pytest.mark.parametrize("name", ["run", "both"])
def test_no_prediction_depends_on_another_patient(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run: Path = request.getfixturevalue(name)
    alone = logits_of(run, copied(run, tmp_path / "alone", "9"))
    among = logits_of(run, copied(run, tmp_path / "among", "104", "105", "9"))
    assert np.array_equal(among.loc["9"].to_numpy(), alone.loc["9"].to_numpy())


@pytest.mark.parametrize("name", ["run", "both"])
def test_a_prediction_depends_on_its_neighbours_and_can_do_without(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run: Path = request.getfixturevalue(name)
    whole = logits_of(run, copied(run, tmp_path / "whole", "9"))
    folder = copied(run, tmp_path / "lone", "9")
    for path in sorted(folder.rglob("*.png"))[:-1]:
        path.unlink()
    lone = logits_of(run, folder)
    assert len(lone) == 1
    assert np.isfinite(lone.to_numpy()).all()
    assert lone.iloc[0] != whole.loc[lone.index[0]]


def test_each_patient_learns_in_crops_of_its_own(tmp_path: Path) -> None:
    config = config_of(*TINY, *write_tissue(tmp_path), *CROPS, f"cache={tmp_path}")
    data = build_data(config, ALONE)
    data.setup()
    patient = data.table["patient_id"].to_numpy(dtype=object)
    for batch in data.train_dataloader():
        for cell in batch["cell"]:
            assert len(set(patient[cell[cell != NO_CELL].numpy()])) == 1
            assert set(data.table["split"].iloc[cell[cell != NO_CELL].numpy()]) == {"train"}


# Weights of single patches


def test_crops_begin_with_what_single_patches_have_taught(run: Path, tmp_path: Path) -> None:
    first = run / "pretraining" / "checkpoints" / "best.ckpt"
    begun: list[dict[str, torch.Tensor]] = []
    train_start = IDCClassifier.on_train_start

    def keep(self: IDCClassifier) -> None:
        begun.append({k: v.clone() for k, v in self.network.state_dict().items()})
        train_start(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IDCClassifier, "on_train_start", keep)
        own = trained(tmp_path, *CROPS, "pretraining=patches", f"pretraining.run={first}")
    assert len(begun) == 1
    assert_equal(begun[0], network_of(run / "pretraining"))
    assert not (own / "pretraining").exists()
    begins = load_classifier(own / "checkpoints" / "best.ckpt").model_config.weights
    assert begins == f"pretraining.run={first}"


def test_without_an_epoch_the_network_of_a_run_is_judged(run: Path, tmp_path: Path) -> None:
    given = ("pretraining=patches", f"pretraining.run={run}/pretraining", "trainer.epochs=0")
    (tmp_path / "as_it_was").mkdir()
    before = trained(tmp_path / "as_it_was", *given, "callbacks.ema_decay=0.9")
    after = trained(tmp_path, *given, "model.context.name=smooth", "model.context.bandwidth=2")
    first = load_classifier(run / "pretraining" / "checkpoints" / "best.ckpt")
    taught = dict(first.network.state_dict())
    for own in (before, after):
        assert not (own / "metrics.csv").exists()
        judged = load_classifier(own / "checkpoints" / "best.ckpt")
        assert_equal(dict(judged.network.state_dict()), taught)
        assert judged.optimizer_config == first.optimizer_config
        assert judged.model_config.weights == first.model_config.weights
        assert read_results(own / "results.json")["epochs"] == 0
    assert read_results(before / "results.json")["bandwidth"] == 0
    assert read_results(after / "results.json")["bandwidth"] == 2
    assert not predictions(before, "test")["proba"].equals(predictions(after, "test")["proba"])
    evaluate(evaluation(after), tmp_path / "again")
    again = predictions(tmp_path / "again", "test")
    pd.testing.assert_frame_equal(again, predictions(after, "test"))


def test_without_an_epoch_nothing_is_fitted_to_other_train_patches(tmp_path: Path) -> None:
    frozen = ("model.freeze_backbone=true", "model.frozen_batchnorm=adapt")
    first = trained(tmp_path / "first", *frozen)
    taken = ("pretraining=patches", f"pretraining.run={first}", "trainer.epochs=0")
    own = trained(tmp_path / "own", *taken, "data.sample=40")
    assert_equal(network_of(own), network_of(first))
    weights = [
        load_classifier(at / "checkpoints" / "best.ckpt").class_weights for at in (own, first)
    ]
    assert torch.equal(*weights)


def test_the_time_of_pretraining_counts(run: Path) -> None:
    first = torch.load(run / "pretraining" / "checkpoints" / "last.ckpt", weights_only=True)
    own = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    both = [content["callbacks"]["Throughput"]["elapsed"] for content in (first, own)]
    assert min(both) > 0
    assert read_results(run / "results.json")["seconds"] >= round(sum(both), 1)


def test_test_is_not_looked_at_before_the_end(run: Path) -> None:
    for folder in (run, run / "pretraining"):
        logged = pd.read_csv(folder / "metrics.csv") if (folder / "metrics.csv").exists() else None
        assert logged is None or not any(name.startswith("test/") for name in logged.columns)
    assert not (run / "pretraining" / "predictions").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("model.head.hidden=[4]",), "another network: model.head.hidden=[8], where this one"),
        (("model.backbone=shufflenet_v2_x1_0",), "another network: model.backbone="),
        (("pretraining.run=nowhere",), "pretraining.run=nowhere doesn't exist: give a run folder"),
        (
            ("trainer.epochs=0", *GRID),
            "another network: model.context.name=smooth, where this one has grid",
        ),
        (
            ("trainer.epochs=0", "data.crop=1"),
            "has learned with data.crop=2, where this run has 1, to which a network that learns no",
        ),
        (
            ("trainer.epochs=0", "data.stain_normalisation=slide"),
            "has learned with data.stain_normalisation=none, where this run has slide",
        ),
        (("trainer.epochs=0", "data.edge_patches=resize"), "learned with data.edge_patches=pad"),
    ],
)
def test_weights_that_cannot_be_taken_are_told(
    run: Path, tmp_path: Path, overrides: tuple[str, ...], said: str
) -> None:
    taken = ("pretraining=patches", f"pretraining.run={run}")
    with told(said):
        trained(tmp_path, *CROPS, *taken, *overrides)


def test_a_network_of_single_patches_sees_them_as_it_has_learned(run: Path, tmp_path: Path) -> None:
    taken = ("pretraining=patches", f"pretraining.run={run}/pretraining", *CROPS)
    other = (*taken, "data.edge_patches=resize")
    with told("has learned with data.edge_patches=pad, where this run has resize"):
        trained(tmp_path / "both", *other, "model.context.with_single=true")
    trained(tmp_path / "one", *other)  # learns on, also what edges look like


def test_a_run_that_has_not_ended_is_named(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "killed")
    (tmp_path / "killed" / "results.json").unlink()
    taken = (*CROPS, "pretraining=patches", f"pretraining.run={tmp_path}/killed")
    with told("killed holds no results.json: it failed, was killed or runs still. Let it end, or"):
        trained(tmp_path / "one", *taken)
    trained(tmp_path / "two", *taken[:-1], f"{taken[-1]}/checkpoints/best.ckpt")


def test_a_judgement_that_goes_on_says_how_its_network_has_learned(
    run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "first")
    taken = (*CROPS, "pretraining=patches", f"pretraining.run={tmp_path}/first")
    recipe = (*taken, "trainer.epochs=0", "optimizer=adamw", f"cache={tmp_path}/cache")
    own = trained(tmp_path, *recipe)
    files = [own / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    before = [torch.load(file, weights_only=True)["hyper_parameters"] for file in files]
    assert before[0]["optimizer"]["name"] == "sgd"
    (own / "results.json").unlink()
    shutil.rmtree(tmp_path / "first")
    train(config_of(*TINY, *write_tissue(tmp_path), *QUICK, *recipe), own)
    assert [torch.load(file, weights_only=True)["hyper_parameters"] for file in files] == before


def test_a_run_goes_on_without_the_one_that_it_began_with(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "first")
    taken = ("pretraining=patches", f"pretraining.run={tmp_path}/first")
    recipe = (*CROPS, *taken, "scheduler=none", f"cache={tmp_path}/cache")
    own = trained(tmp_path, *recipe)
    before = torch.load(own / "checkpoints" / "last.ckpt", weights_only=True)
    shutil.rmtree(tmp_path / "first")
    config = config_of(*TINY, *write_tissue(tmp_path), *QUICK, *recipe, "trainer.epochs=2")
    train(config, own)
    after = torch.load(own / "checkpoints" / "last.ckpt", weights_only=True)
    assert after["global_step"] == 2 * before["global_step"]
    begun = after["hyper_parameters"]["model"]["weights"]
    assert begun == f"pretraining.run={tmp_path}/first"


def test_weights_that_know_patients_of_dev_or_test_are_refused(run: Path, tmp_path: Path) -> None:
    splits = {
        "101": "test",
        "102": "dev",
        "9": "train",
        "103": "train",
        "104": "test",
        "105": "dev",
    }
    other = tmp_path / "other.csv"
    rows = "".join(f"{patient},{split}\n" for patient, split in splits.items())
    other.write_text(f"patient_id,split\n{rows}")
    taken = ("pretraining=patches", f"pretraining.run={run}", f"split.path={other}")
    with told("knew 3 patients of this run's dev and test (101, 102, 104): take a run with the"):
        trained(tmp_path, *CROPS, *taken)


def test_the_same_split_is_no_leak(run: Path, tmp_path: Path) -> None:
    trained(tmp_path, *CROPS, "pretraining=patches", f"pretraining.run={run}")


# Two networks


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `run`, but judged together with the network that has learned on single patches."""
    own = (*PRETRAINED, *SMOOTH, "model.context.with_single=true")
    return trained(tmp_path_factory.mktemp("both"), *own)


def test_of_two_networks_one_learns_as_it_does_alone(run: Path, both: Path) -> None:
    classifier = load_classifier(both / "checkpoints" / "best.ckpt")
    assert classifier.single is not None
    assert_equal(network_of(both), network_of(run))
    assert_equal(dict(classifier.single.state_dict()), network_of(both / "pretraining"))
    # What has learned on crops is another network by now.
    assert not torch.equal(classifier.single.head[0].weight, classifier.network.head[0].weight)


@pytest.mark.parametrize("views", [False, True])
def test_two_networks_judge_by_their_mean(both: Path, views: bool) -> None:
    model = load_classifier(both / "checkpoints" / "best.ckpt")
    single = load_classifier(both / "pretraining" / "checkpoints" / "best.ckpt")
    assert model.single is not None
    changed = {"test_time_augmentation": views}
    model.model_config = model.model_config.model_copy(update=changed)
    single.model_config = single.model_config.model_copy(update=changed)
    torch.manual_seed(0)
    image = torch.rand(1, 3, 2 * PATCH, 3 * PATCH)
    shown = torch.tensor([[[5, NO_CELL, 1], [2, 3, 4]]])
    cell = torch.tensor([[[5, NO_CELL, 1], [2, NO_CELL, NO_CELL]]])  # of the others only a view
    with torch.inference_mode():
        found = model.judge(image, shown=shown, cell=cell)
        cells = image.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5)
        alone = single.judge(cells[cell != NO_CELL])
        model.single = None
        together = model.judge(image, shown=shown, cell=cell)
    torch.testing.assert_close(found, (together + alone) / 2)
    assert not torch.allclose(found, together)


def test_two_networks_are_judged_by_one_where_it_is_wanted(
    run: Path, both: Path, tmp_path: Path
) -> None:
    taken = ("pretraining=patches", f"pretraining.run={both}", "trainer.epochs=0", *CROPS)
    smooth = (*taken, "model.context.name=smooth")
    one = trained(tmp_path / "one", *smooth)
    two = trained(tmp_path / "two", *smooth, "model.context.with_single=true")
    for split in ("dev", "test"):
        pd.testing.assert_frame_equal(predictions(one, split), predictions(run, split))
        pd.testing.assert_frame_equal(predictions(two, split), predictions(both, split))
    assert not predictions(one, "test")["proba"].equals(predictions(two, "test")["proba"])


def test_a_run_that_begins_with_two_networks_keeps_that_of_single_patches(
    both: Path, tmp_path: Path
) -> None:
    taken = ("pretraining=patches", f"pretraining.run={both}", "model.context.with_single=true")
    own = load_classifier(trained(tmp_path, *CROPS, *taken) / "checkpoints" / "best.ckpt")
    assert own.single is not None
    assert_equal(dict(own.single.state_dict()), network_of(both / "pretraining"))


def test_a_grid_is_judged_with_the_network_of_single_patches_and_without(tmp_path: Path) -> None:
    grid = (*PRETRAINED, *GRID)
    first = trained(tmp_path / "first", *grid, "model.context.with_single=true")
    taken = (*CROPS, *GRID, "pretraining=patches", f"pretraining.run={first}", "trainer.epochs=0")
    frozen = ("model.freeze_backbone=true", "model.weights=none")
    one = trained(tmp_path / "one", *taken)
    assert_equal(network_of(one), network_of(first))
    assert not predictions(one, "test")["proba"].equals(predictions(first, "test")["proba"])
    with told("has another network: model.context.name=grid, where this one has none"):
        trained(tmp_path / "none", *taken, "model.context.name=none")
    with told("model.context.with_single=true needs images"):
        config_of(*TINY, *grid, *frozen, "model.context.with_single=true")


def test_a_network_of_crops_is_none_of_single_patches(run: Path, tmp_path: Path) -> None:
    taken = ("pretraining=patches", f"pretraining.run={run}", "model.context.with_single=true")
    with told("is a run on crops without a network of single patches beside its own: take a run"):
        trained(tmp_path, *CROPS, *taken)


@pytest.mark.parametrize("part", ["", "pretraining"])
def test_without_an_epoch_a_network_is_no_second_one(run: Path, tmp_path: Path, part: str) -> None:
    taken = ("pretraining=patches", f"pretraining.run={run / part}", "trainer.epochs=0")
    with told("has no network of single patches beside its own: take a run on crops that"):
        trained(tmp_path, *CROPS, *taken, "model.context.with_single=true")


# A net over the grid


def test_a_grid_begins_as_the_net_of_single_patches() -> None:
    torch.manual_seed(0)
    network = IDCClassifier(*sections(*TINY, *CROPS, *GRID)).eval()
    image = torch.rand(2, 3, 2 * PATCH, 3 * PATCH)
    with torch.inference_mode():
        whole = network(image)
        alone = network(image[:, :, PATCH:, :PATCH])
    assert whole.shape == (2, 2, 3, 2)
    torch.testing.assert_close(whole[:, 1:, :1], alone)


def test_a_grid_sees_neighbours_as_far_as_its_blocks_reach_and_no_background() -> None:
    torch.manual_seed(0)
    grid = GridContext(5, 6, blocks=1).eval()
    torch.nn.init.normal_(grid.leave.weight)
    features = torch.rand(1, 7, 7, 5)
    there = torch.ones(1, 7, 7, dtype=torch.bool)
    there[0, 3, 4] = False
    with torch.inference_mode():
        before = grid(features, there)
        for place, far in {(3, 5): True, (3, 6): False, (3, 4): False, (0, 0): False}.items():
            other = features.clone()
            other[0, *place] += torch.rand(5)
            after = grid(other, there)
            assert torch.equal(after[0, 3, 3], before[0, 3, 3]) != far, place
            assert not after[0, 3, 4].any()


def test_stored_features_of_a_grid_teach_what_images_teach(tmp_path: Path) -> None:
    # Of the table's first row, a patch of dev, no turned view is computed.
    splits = "101,dev\n102,train\n103,train\n104,train\n105,train\n9,test\n"
    (tmp_path / "first.csv").write_text(f"patient_id,split\n{splits}")
    given = f"split.path={tmp_path}/first.csv"
    frozen = (*CROPS, *GRID, "model.freeze_backbone=true", "model.head.dropout=0", "seed=3", given)
    weights = []
    for name in ("auto", "off"):
        own = trained(tmp_path / name, *frozen, f"data.features={name}", f"cache={tmp_path}/cache")
        weights.append(torch.load(own / "checkpoints" / "last.ckpt", weights_only=True))
    assert (tmp_path / "cache" / "features").is_dir()
    for key, value in weights[0]["state_dict"].items():
        torch.testing.assert_close(value, weights[1]["state_dict"][key], rtol=1e-4, atol=1e-5)
    assert weights[0]["state_dict"]["network.context.leave.weight"].any()


def test_a_frozen_backbone_that_sees_crops_is_computed_anew(tmp_path: Path) -> None:
    own = trained(tmp_path, *CROPS, "model.freeze_backbone=true")
    (note,) = read_results(own / "results.json")["notes"]
    assert note.endswith("since data.crop=2 gives a patch other features in each crop")


# All eight views


def test_views_are_averaged_where_they_lie() -> None:
    torch.manual_seed(0)
    model = IDCClassifier(*sections(*TINY, *CROPS, "model.test_time_augmentation=true")).eval()
    image = torch.rand(2, 3, 2 * PATCH, 3 * PATCH)
    cell = torch.tensor([[[5, NO_CELL, 1], [2, 3, 4]], [[0, 6, 7], [8, NO_CELL, NO_CELL]]])
    with torch.inference_mode():
        logits = model.judge(image, shown=cell, cell=cell)
        for other in (image.flip(3), image.rot90(1, (2, 3))):
            dims = (1, 2)
            same = cell.flip(2) if other.shape == image.shape else cell.rot90(1, dims)
            again = model.judge(other, shown=same, cell=same)
            order, wanted = (part[part != NO_CELL].argsort() for part in (same, cell))
            torch.testing.assert_close(again[order], logits[wanted], rtol=1e-4, atol=1e-5)
        single = model.judge(image[:, :, :PATCH, :PATCH])
        alone = [model(image[:, :, :PATCH, :PATCH].rot90(turn, (2, 3))) for turn in range(4)]
        alone += [model(image[:, :, :PATCH, :PATCH].rot90(k, (2, 3)).flip(3)) for k in range(4)]
    torch.testing.assert_close(single, torch.stack(alone).mean(0).flatten(0, -2))


def test_views_are_averaged_after_training_only(tmp_path: Path) -> None:
    own = trained(tmp_path, *CROPS, "model.test_time_augmentation=true", "logger=default")
    logged = pd.read_csv(own / "metrics.csv")["dev/auroc"].dropna()
    plain = trained(tmp_path / "plain", *CROPS, "logger=default")
    assert logged.tolist() == pd.read_csv(plain / "metrics.csv")["dev/auroc"].dropna().tolist()
    ours, theirs = predictions(own, "test")["proba"], predictions(plain, "test")["proba"]
    assert (ours != theirs).any()


# Judging again


@pytest.mark.parametrize("name", ["run", "both"])
def test_evaluation_says_the_same(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run: Path = request.getfixturevalue(name)
    evaluate(evaluation(run), tmp_path)
    for split in ("dev", "test"):
        pd.testing.assert_frame_equal(predictions(tmp_path, split), predictions(run, split))
    own, again = read_results(run / "results.json"), read_results(tmp_path / "results.json")
    for part in ("dev", "test", "threshold", "temperature", "bias", "bandwidth"):
        assert again[part] == own[part]


@pytest.mark.parametrize("name", ["run", "both"])
def test_new_tissue_is_judged_as_in_the_run(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run: Path = request.getfixturevalue(name)
    found = logits_of(run, copied(run, tmp_path / "new", "9"))
    own = predictions(run, "test").set_index(["patient_id", "x", "y"])["proba"]
    pd.testing.assert_series_equal(found.sort_index(), own.sort_index(), rtol=1e-6)
