import shutil
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from helpers_model import PATIENTS, config_of, told, write_tissue
from PIL import Image

import idc_lightning.data.datamodule as datamodule
import idc_lightning.data.source as source
from idc_lightning.config import AnyData, parse
from idc_lightning.data.augment import as_float
from idc_lightning.data.batches import Batch
from idc_lightning.data.datamodule import IDCDataModule
from idc_lightning.data.decode import image_keys
from idc_lightning.data.grid import PATCH
from idc_lightning.errors import IDCError

Overrides = tuple[str, ...]
HEALTHY, IDC = 6, 3
EACH = HEALTHY + IDC


@pytest.fixture
def tissue(tmp_path: Path) -> Overrides:
    """Six patients, three of them in train, and the overrides that name them."""
    return ("data=idc", "split=file", *write_tissue(tmp_path, healthy=HEALTHY, idc=IDC))


def module(tmp_path: Path, *overrides: str) -> IDCDataModule:
    config = config_of(f"cache={tmp_path}/cache", *overrides)
    return IDCDataModule(config.data, config.split, seed=config.seed, cache=config.cache)


def ready(tmp_path: Path, *overrides: str) -> IDCDataModule:
    data = module(tmp_path, *overrides)
    data.prepare_data()
    data.setup()
    return data


def files(tmp_path: Path, *patients: str, target: int | None = None) -> list[Path]:
    found = [path for p in patients for path in sorted((tmp_path / "tissue" / p).rglob("*.png"))]
    return [path for path in found if target is None or path.parent.name == str(target)]


def in_stage(data: IDCDataModule, *, training: bool, epoch: int = 0) -> None:
    trainer = SimpleNamespace(training=training, current_epoch=epoch)
    data.trainer = trainer  # type: ignore[assignment]


def batch_of(data: IDCDataModule, split: str = "train") -> Batch:
    return next(iter(data.eval_dataloader(split)))


def test_the_table_holds_each_patch_once_with_its_split(tmp_path: Path, tissue: Overrides) -> None:
    data = ready(tmp_path, *tissue)
    named = {"patient_id", "x", "y", "target", "path", "split"}
    assert set(data.table.columns) == named | {"width", "height", "edge", "blank", "digest"}
    assert len(data.table) == EACH * len(PATIENTS)
    assert not data.table.duplicated(["patient_id", "x", "y"]).any()
    assert dict(zip(data.table["patient_id"], data.table["split"], strict=True)) == PATIENTS
    assert dict(data.splits.items()) == PATIENTS
    for row, path in enumerate(data.table["path"]):
        pixels = np.asarray(Image.open(tmp_path / "tissue" / path))
        np.testing.assert_array_equal(data.store.read(row), pixels)


def test_splits_are_served_apart_and_whole(tmp_path: Path, tissue: Overrides) -> None:
    data = ready(tmp_path, *tissue, "data.batch_size=4", "data.drop_last=false")
    seen = {}
    for name, batches in (
        ("train", data.train_dataloader()),
        ("dev", data.val_dataloader()),
        ("test", data.test_dataloader()),
    ):
        rows = [row for batch in batches for row in batch["cell"].flatten().tolist()]
        assert (data.table["split"][rows] == name).all()
        assert sorted(rows) == data.rows(name).tolist()
        seen[name] = rows
    assert seen["train"] != sorted(seen["train"])
    assert seen["dev"] == sorted(seen["dev"])
    assert sum(map(len, seen.values())) == len(data.table)


def test_counts_and_summary_are_of_the_patches_that_are_used(
    tmp_path: Path, tissue: Overrides
) -> None:
    files(tmp_path, "101", target=1)[0].write_bytes(b"")
    data = ready(tmp_path, *tissue, "data.on_broken=skip")
    assert data.class_counts() == [3 * HEALTHY, 3 * IDC - 1]
    summary = data.summary().set_index("split")
    assert summary["patients"].to_dict() == {"train": 3, "dev": 2, "test": 1}
    assert summary["patches"].to_dict() == {"train": 3 * EACH - 1, "dev": 2 * EACH, "test": EACH}
    assert summary.loc["train", "idc"] == pytest.approx((3 * IDC - 1) / (3 * EACH - 1))
    assert data.notes() == ["left out 1 patches that can't be read"]


def test_notes_tell_all_that_was_left_out_or_changed(tmp_path: Path, tissue: Overrides) -> None:
    grey, small, *_ = files(tmp_path, "101")
    Image.open(grey).convert("L").save(grey)
    Image.open(small).crop((0, 0, 9, 50)).save(small)
    (tmp_path / "tissue" / "101" / "0" / "list.txt").write_text("mine")
    (tmp_path / "tissue" / ".hidden").write_text("")
    assert sorted(ready(tmp_path, *tissue).notes()) == [
        "converted 1 grey patches to RGB",
        "edge patches smaller than 50x50 px: 1",
        "left out 1 files that are no patches",
        "left out 1 hidden files",
    ]
    dropped = ready(tmp_path, *tissue, "data.edge_patches=drop")
    assert "left out 1 edge patches" in dropped.notes()
    assert len(dropped.table) == EACH * len(PATIENTS) - 1


@pytest.mark.parametrize("target", [0, 1])
def test_a_class_absent_from_train(tmp_path: Path, tissue: Overrides, target: int) -> None:
    for path in files(tmp_path, "101", "102", "103", target=target):
        path.unlink()
    data = module(tmp_path, *tissue)
    with told(f"train has no {('healthy', 'IDC')[target]} patch"):
        data.setup()
    with pytest.raises(RuntimeError, match="call setup"):
        _ = data.table  # nothing half done stays behind


def test_a_class_absent_from_dev_and_test_is_no_mistake(tmp_path: Path, tissue: Overrides) -> None:
    for path in files(tmp_path, "104", "105", "9", target=1):
        path.unlink()
    assert ready(tmp_path, *tissue).summary()["idc"].tolist()[1:] == [0, 0]


def test_a_split_that_loses_its_last_patch(tmp_path: Path, tissue: Overrides) -> None:
    for path in files(tmp_path, "9"):
        path.write_bytes(b"")
    with told("no patch of test is left", "data.on_broken"):
        ready(tmp_path, *tissue, "data.on_broken=skip")


def test_an_image_in_two_splits(tmp_path: Path, tissue: Overrides) -> None:
    shutil.copy(files(tmp_path, "101")[0], files(tmp_path, "9")[0])
    with told("leak: 1 images stand in more than one split"):
        ready(tmp_path, *tissue)


def test_data_root_that_is_missing(tmp_path: Path) -> None:
    with told("data.root is not set"):
        module(tmp_path, "data=idc").prepare_data()
    with told(f"data.root={tmp_path}/nowhere doesn't exist"):
        module(tmp_path, "data=idc", f"data.root={tmp_path}/nowhere").prepare_data()
    (tmp_path / "file").write_text("")
    with told(f"data.root={tmp_path}/file is neither a folder nor a .zip"):
        module(tmp_path, "data=idc", f"data.root={tmp_path}/file").prepare_data()


def test_data_root_may_begin_with_the_home_folder(
    tmp_path: Path, tissue: Overrides, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ready(tmp_path, *tissue, "data.root='~/tissue'").index.root == tmp_path / "tissue"


def test_an_archive_is_read_like_its_folder(tmp_path: Path, tissue: Overrides) -> None:
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "tissue")
    folder, archive = (
        ready(tmp_path, *tissue, f"data.root={tmp_path}/{name}")
        for name in ("tissue", "packed.zip")
    )
    assert archive.index.root.is_relative_to(tmp_path / "cache")
    assert archive.table.equals(folder.table)
    every = np.arange(len(folder.table))
    np.testing.assert_array_equal(archive.store.read(every), folder.store.read(every))


def test_everything_asks_for_setup_first(tmp_path: Path, tissue: Overrides) -> None:
    data = module(tmp_path, *tissue)
    for name in ("index", "store", "splits", "table"):
        with pytest.raises(RuntimeError, match="call setup"):
            getattr(data, name)


def test_a_second_setup_reads_nothing(
    tmp_path: Path, tissue: Overrides, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ready(tmp_path, *tissue)
    store = data.store
    monkeypatch.setattr(datamodule, "open_store", lambda *_, **__: pytest.fail("read again"))
    data.setup("fit")
    data.setup("test")
    assert data.store is store


def test_a_sample_keeps_each_patient_and_class(tmp_path: Path, tissue: Overrides) -> None:
    least = 2 * len(PATIENTS)
    for size, expected in ((1, least), (least, least), (30, 30), (1000, EACH * len(PATIENTS))):
        table = ready(tmp_path, *tissue, f"data.sample={size}").table
        assert len(table) == expected
        assert table.groupby(["patient_id", "target"]).ngroups == least


def test_a_sample_copes_with_patients_of_one_patch(tmp_path: Path, tissue: Overrides) -> None:
    for path in files(tmp_path, "102")[1:] + files(tmp_path, "104")[:-1]:
        path.unlink()
    table = ready(tmp_path, *tissue, "data.sample=12").table
    assert table["patient_id"].value_counts()[["102", "104"]].tolist() == [1, 1]
    assert len(table) == 12


def test_a_sample_depends_on_the_seed(tmp_path: Path, tissue: Overrides) -> None:
    first, again, other = (
        ready(tmp_path, *tissue, "data.sample=20", f"seed={seed}").table["path"].tolist()
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_the_state_holds_plain_values_and_comes_back(tmp_path: Path, tissue: Overrides) -> None:
    data = ready(tmp_path, *tissue)
    torch.save(data.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert parse(AnyData, state.pop("data")) == data.data
    train = data.table[data.table["split"] == "train"]
    images = state["seen"]["images"]
    assert images.tolist() == sorted(image_keys(train["digest"]))
    assert state == {
        "seed": 0,
        "block": 1,
        "splits": PATIENTS,
        "seen": {"splits": PATIENTS, "images": images},
        "split_hash": data.split_hash(),
        "patches": {"train": 3 * EACH, "dev": 2 * EACH, "test": EACH},
        "next": [0, 0],
    }
    data.load_state_dict(state)
    sampled = ready(tmp_path, *tissue, "data.sample=20")
    sampled.load_state_dict(state)
    assert sum(sampled.state_dict()["patches"].values()) == 20


def test_another_split_is_refused(tmp_path: Path, tissue: Overrides) -> None:
    state = ready(tmp_path, *tissue).state_dict()
    rows = (tmp_path / "own.csv").read_text()
    (tmp_path / "own.csv").write_text(rows.replace("103,train", "103,test"))
    other = ready(tmp_path, *tissue)
    with told("another split", "split=file split.path="):
        other.load_state_dict(state)


def test_train_images_alone_are_augmented(tmp_path: Path, tissue: Overrides) -> None:
    data = ready(tmp_path, *tissue, "data.augment.stain_jitter=0.2")
    batch = batch_of(data)
    plain = batch["image"].float() / 255
    for training in (False, None):
        if training is not None:
            in_stage(data, training=training)
        same = data.on_after_batch_transfer(batch, 0)
        assert same["image"].dtype == torch.float32
        torch.testing.assert_close(same["image"], plain, rtol=0, atol=0)
    in_stage(data, training=True)
    changed = data.on_after_batch_transfer(batch, 0)
    assert set(changed) == set(batch)
    differs = (changed["image"] - plain).abs().amax(dim=(1, 2, 3)) > 1e-3
    assert differs.all()
    for name in ("label", "cell", "x", "y"):
        assert torch.equal(changed[name], batch[name])  # type: ignore[literal-required]
    assert batch["image"].dtype == torch.uint8


def test_augmentation_follows_the_epoch_and_the_seed(tmp_path: Path, tissue: Overrides) -> None:
    def image(seed: int, epoch: int) -> torch.Tensor:
        data = ready(tmp_path, *tissue, f"seed={seed}")
        batch = batch_of(data)
        in_stage(data, training=True, epoch=epoch)
        return data.on_after_batch_transfer(batch, 0)["image"]

    first = image(0, 0)
    assert torch.equal(first, image(0, 0))
    assert not torch.equal(first, image(0, 1))
    assert not torch.equal(first, image(1, 0))


def test_a_patch_is_augmented_alike_whatever_else_is_left_out(
    tmp_path: Path, tissue: Overrides
) -> None:
    def views(*overrides: str) -> dict[str, torch.Tensor]:
        data = ready(tmp_path, *tissue, "data.augment.stain_jitter=0.2", *overrides)
        loaded = list(data.eval_dataloader("train"))
        in_stage(data, training=True, epoch=3)
        found = {}
        for batch in loaded:
            image = data.on_after_batch_transfer(batch, 0)["image"]
            paths = data.table["path"].iloc[batch["cell"].flatten().numpy()]
            found |= dict(zip(paths, image, strict=True))
        return found

    whole, sampled = views(), views("data.sample=30")
    assert len(sampled) < len(whole)
    for path, image in sampled.items():
        torch.testing.assert_close(image, whole[path], rtol=0, atol=0)


@pytest.mark.parametrize(("size", "sizes"), [(13, [13, 14]), (27, [27]), (10, [10, 10, 7])])
def test_no_train_image_stands_alone(
    tmp_path: Path, tissue: Overrides, size: int, sizes: list[int]
) -> None:
    data = ready(tmp_path, *tissue, f"data.eval_batch_size={size}")
    images = list(data.train_images(torch.device("cpu")))
    assert [len(each) for each in images] == sizes
    seen = {tuple(image.flatten().tolist()) for each in images for image in each}
    assert len(seen) == 3 * EACH


def test_white_is_one_and_black_is_zero() -> None:
    image = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert as_float(image).tolist() == pytest.approx([0, 0.2, 1])


@pytest.mark.parametrize(
    ("size", "drop_last", "batches"),
    [
        (9, "true", [9, 9, 9]),
        (9, "false", [9, 9, 9]),
        (10, "true", [10, 10]),
        (10, "false", [10, 10, 7]),
        (13, "false", [13, 13]),  # BatchNorm can't be trained on the one that is left
        (27, "true", [27]),
        (28, "false", [27]),
    ],
)
def test_sizes_of_train_batches(
    tmp_path: Path, tissue: Overrides, size: int, drop_last: str, batches: list[int]
) -> None:
    data = ready(
        tmp_path, *tissue, f"data.batch_size={size}", f"data.drop_last={drop_last}"
    ).train_dataloader()
    assert [len(batch["cell"]) for batch in data] == batches
    assert len(data) == len(batches)


def test_a_batch_that_is_larger_than_train(tmp_path: Path, tissue: Overrides) -> None:
    data = ready(tmp_path, *tissue, "data.batch_size=28", "data.drop_last=true")
    with told("train has 27 patches", "set data.batch_size to 27 or less"):
        data.train_dataloader()


def test_the_last_incomplete_batch_of_dev_is_served(tmp_path: Path, tissue: Overrides) -> None:
    data = ready(tmp_path, *tissue, "data.eval_batch_size=17", "data.drop_last=true")
    assert [len(batch["cell"]) for batch in data.val_dataloader()] == [17, 1]


def test_edge_patches_are_padded_in_batches(tmp_path: Path, tissue: Overrides) -> None:
    path = files(tmp_path, "9")[0]
    Image.open(path).crop((0, 0, PATCH, 20)).save(path)
    data = ready(tmp_path, *tissue)
    white = (batch_of(data, "test")["image"] == 255).all(dim=1)
    edge = torch.from_numpy(data.table["edge"][data.rows("test")].to_numpy(copy=True))
    assert edge.sum() == 1
    assert white[edge, 20:].all()
    assert not white[edge, :20].any()
    assert not white[~edge].any()


@pytest.mark.parametrize(
    ("choice", "notes", "edges"),
    [
        ("pad", ["edge patches smaller than 50x50 px: 1"], 1),
        (
            "resize",
            ["edge patches smaller than 50x50 px: 1", "edge patches stretched to 50x50 px: 1"],
            1,
        ),
        ("drop", ["left out 1 edge patches"], 0),
    ],
)
def test_edge_patches_become_what_is_asked_for(
    tmp_path: Path, tissue: Overrides, choice: str, notes: list[str], edges: int
) -> None:
    path = files(tmp_path, "9")[0]
    Image.open(path).crop((0, 0, PATCH, 20)).save(path)
    data = ready(tmp_path, *tissue, f"data.edge_patches={choice}")
    assert data.notes() == notes
    assert data.table["edge"].sum() == edges
    assert len(data.table) == EACH * len(PATIENTS) - (not edges)
    pixels = data.store.read(np.arange(len(data.table)))
    white = (pixels == 255).all(axis=(1, 2, 3)).any()
    below = (pixels[:, 20:] == 255).all(axis=(1, 2, 3))
    assert not white
    assert below.sum() == (choice == "pad")


class Watcher(lightning.LightningModule):
    """Learns nothing and keeps the batches that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.learned: dict[int, list[Batch]] = {0: [], 1: []}
        self.judged: list[Batch] = []

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        self.learned[self.current_epoch].append(batch)
        return (self.weight * batch["image"].mean()).sum()

    def validation_step(self, batch: Batch, _: int) -> None:
        self.judged.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_lightning_shuffles_each_epoch_and_augments_train_alone(
    tmp_path: Path, tissue: Overrides
) -> None:
    def epoch(batches: list[Batch]) -> tuple[list[int], torch.Tensor]:
        """Rows in their order, and the images in the table's order."""
        rows = torch.cat([batch["cell"].flatten() for batch in batches])
        return rows.tolist(), torch.cat([batch["image"] for batch in batches])[rows.argsort()]

    data = module(tmp_path, *tissue, "data.batch_size=9")
    model = Watcher()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(model, datamodule=data)
    (first, images), (second, others) = epoch(model.learned[0]), epoch(model.learned[1])
    assert sorted(first) == sorted(second) == data.rows("train").tolist()
    assert first != second
    assert ((images - others).abs().amax(dim=(1, 2, 3)) > 1e-3).float().mean() > 0.5
    assert model.judged
    for batch in model.judged:
        plain = torch.from_numpy(data.store.read(batch["cell"].flatten().numpy()))
        torch.testing.assert_close(batch["image"], plain.permute(0, 3, 1, 2) / 255)


DEMO = ("data.patients=6", "data.patches=60", "data.seed=3", "split=notebook")


@pytest.fixture
def made(tmp_path: Path) -> tuple[IDCDataModule, Path]:
    """Demo data and the folder that holds its tissue."""
    data = ready(tmp_path, *DEMO)
    return data, data.root().parent


def test_demo_tissue_is_made_once(
    tmp_path: Path, made: tuple[IDCDataModule, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, folder = made
    assert folder.is_relative_to(tmp_path / "cache")
    assert len(first.table) == 60
    monkeypatch.setattr(source, "make_demo", lambda *_, **__: pytest.fail("made again"))
    assert ready(tmp_path, *DEMO).table.equals(first.table)


@pytest.mark.parametrize("other", ["data.patients=7", "data.patches=70", "data.seed=4"])
def test_other_demo_tissue_has_its_own_folder(
    tmp_path: Path, made: tuple[IDCDataModule, Path], other: str
) -> None:
    assert ready(tmp_path, *DEMO, other).root().parent != made[1]


def test_a_demo_left_half_made_is_made_anew(
    tmp_path: Path, made: tuple[IDCDataModule, Path]
) -> None:
    first, folder = made
    patient = next((folder / "tissue").iterdir())
    half = folder.parent / f".{folder.name}.partial"
    shutil.copytree(patient, half / "tissue" / patient.name)
    shutil.rmtree(folder)
    again = ready(tmp_path, *DEMO)
    assert again.table.equals(first.table)
    assert not half.exists()


def test_a_demo_that_fails_leaves_nothing_to_be_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, **_: object) -> None:
        (folder / "1" / "0").mkdir(parents=True)
        raise IDCError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(source, "make_demo", fail)
        with told("no space left"):
            module(tmp_path, *DEMO).prepare_data()
    assert len(ready(tmp_path, *DEMO).table) == 60


@pytest.mark.parametrize("gone", ["tissue", "patient"])
def test_a_demo_of_which_parts_are_gone(
    tmp_path: Path, made: tuple[IDCDataModule, Path], gone: str
) -> None:
    _, folder = made
    tissue = folder / "tissue"
    shutil.rmtree(tissue if gone == "tissue" else next(tissue.iterdir()))
    with told("parts of the demo tissue", str(folder), "delete this folder"):
        ready(tmp_path, *DEMO)
    shutil.rmtree(folder)
    assert len(ready(tmp_path, *DEMO).table) == 60


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("mine")
    with told("can't write", f"{tmp_path}/cache"):
        module(tmp_path, *DEMO).prepare_data()


def first_two(row: str) -> list[str]:
    return row.split(",")[:2]


def test_patients_that_a_published_split_does_not_name(tmp_path: Path, tissue: Overrides) -> None:
    published = Path(datamodule.__file__).with_name("cruz_roa_2014.csv").read_text()
    by_split = {split: patient for patient, split in map(first_two, published.splitlines())}
    known = {"101": by_split["train"], "104": by_split["dev"], "9": by_split["test"]}
    for old, new in known.items():
        for path in files(tmp_path, old):
            renamed = tmp_path / "tissue" / new / path.parent.name / path.name
            renamed = renamed.with_name(path.name.replace(f"{old}_idx5", f"{new}_idx5"))
            renamed.parent.mkdir(parents=True, exist_ok=True)
            path.rename(renamed)
        shutil.rmtree(tmp_path / "tissue" / old)
    root = next(part for part in tissue if part.startswith("data.root="))
    data = ready(tmp_path, "data=idc", root, "split=cruz_roa_2014")
    assert set(data.table["patient_id"]) == set(known.values()) == set(data.splits.index)
    assert len(data.table) == 3 * EACH
    assert len(data.index.table) == 6 * EACH
    assert "left out 3 patients that split=cruz_roa_2014 doesn't name" in data.notes()
