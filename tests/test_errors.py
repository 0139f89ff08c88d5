"""Each mistake of a user ends in one clear line and exit code 1, and leaves no run folder."""

import pickle
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_command import SMALL, Command
from PIL import Image
from torchvision.models import get_model

from idc_lightning.classifier import IDCClassifier
from idc_lightning.data.demo import make_demo
from idc_lightning.errors import IDCError
from idc_lightning.explore import main as explore

IDC = ("data=idc", "split.dev=0.2", "split.test=0.2", *SMALL[2:])


@pytest.fixture(scope="session")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients of demo tissue; tests copy it before they spoil it."""
    folder = tmp_path_factory.mktemp("tissue") / "tissue"
    make_demo(folder, patients=6, patches=120, seed=0)
    return folder


@pytest.fixture
def spoiled(tissue: Path, tmp_path: Path) -> Path:
    """A copy of the tissue."""
    return Path(shutil.copytree(tissue, tmp_path / "spoiled"))


@pytest.fixture
def refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Run idc-train, which must fail as a mistake of a user does; returns what it says."""
    folder = tmp_path / "here"
    folder.mkdir()
    command = Command(folder, capsys, monkeypatch)

    def run(*overrides: str, lines: int = 1) -> str:
        ended = command(*overrides)
        said = ended.err.strip().splitlines()
        assert ended.code == 1
        assert ended.left == []
        assert said[0].startswith("error: ")
        assert len(said) == lines
        return ended.err

    return run


def files(root: Path) -> list[Path]:
    return sorted(root.rglob("*.png"))


def test_no_data_root(refused: Callable[..., str]) -> None:
    assert "data.root is not set" in refused("data=idc")


def test_data_root_that_does_not_exist(refused: Callable[..., str]) -> None:
    assert "data.root=nowhere doesn't exist" in refused("data=idc", "data.root=nowhere")


def test_data_root_below_the_home_folder(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"data.root={tmp_path}/x doesn't exist" in refused("data=idc", "data.root=~/x")


def test_empty_data_root(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no patches in" in refused("data=idc", f"data.root={tmp_path}/empty")


def test_broken_files_are_all_listed(refused: Callable[..., str], spoiled: Path) -> None:
    cut, empty, text = files(spoiled)[3:90:30]
    cut.write_bytes(cut.read_bytes()[:-200])
    empty.write_bytes(b"")
    text.write_text("not an image")
    said = refused(*IDC, f"data.root={spoiled}", lines=4)
    assert "3 patches of" in said
    assert "data.on_broken=skip" in said
    assert all(path.name in said for path in (cut, empty, text))


def test_broken_files_can_be_skipped(
    spoiled: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files(spoiled)[10].write_bytes(b"")
    ended = Command(tmp_path, capsys, monkeypatch)(
        *IDC, f"data.root={spoiled}", "data.on_broken=skip"
    )
    assert ended.code == 0
    assert "left out 1 patches that can't be read" in ended.out


def test_both_labels_at_one_position(refused: Callable[..., str], spoiled: Path) -> None:
    healthy = next(path for path in files(spoiled) if path.parent.name == "0")
    double = healthy.parents[1] / "1" / healthy.name.replace("class0", "class1")
    shutil.copy(healthy, double)
    said = refused(*IDC, f"data.root={spoiled}")
    assert healthy.name in said
    assert double.name in said
    assert "data.on_conflict=drop" in said


def test_an_image_in_two_splits(refused: Callable[..., str], spoiled: Path) -> None:
    first, last = files(spoiled)[0], files(spoiled)[-1]
    for number, path in enumerate(files(spoiled)):  # whatever the split, one copy is elsewhere
        if path.parents[1] not in (first.parents[1],) and number % 20 == 0:
            shutil.copy(first, path)
    shutil.copy(first, last)
    said = refused(*IDC, f"data.root={spoiled}")
    assert "leak: 1 images stand in more than one split" in said
    assert first.name in said


def test_too_few_patients(refused: Callable[..., str]) -> None:
    said = refused(*SMALL, "data.patients=2", "data.patches=40")
    assert "too few patients for split=stratified" in said


def test_a_class_absent_from_train(refused: Callable[..., str], spoiled: Path) -> None:
    for path in files(spoiled):
        if path.parent.name == "1":
            path.unlink()
    assert "train has no IDC patch" in refused(*IDC, f"data.root={spoiled}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: [*rows, "99999,train"], "99999 (unknown to the data)"),
        (lambda rows: rows[:-1], "(missing from the file)"),
        (lambda rows: [*rows, rows[-1].replace("test", "dev")], "assigns patients more than once"),
        (lambda rows: [row.replace("dev", "val") for row in rows], "unknown splits val"),
    ],
)
def test_a_split_file_that_does_not_fit(
    refused: Callable[..., str],
    tissue: Path,
    tmp_path: Path,
    change: Callable[[list[str]], list[str]],
    said: str,
) -> None:
    splits = ("train", "train", "train", "train", "dev", "test")
    rows = [f"{path.name},{s}" for path, s in zip(sorted(tissue.iterdir()), splits, strict=True)]
    path = tmp_path / "own.csv"
    path.write_text("\n".join(["patient_id,split", *change(rows)]))
    assert said in refused(
        "data=idc", f"data.root={tissue}", "split=file", f"split.path={path}", *SMALL[2:]
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.head.dropot=0.3"], "unknown key model.head.dropot, did you mean"),
        (["+model.head.dropot=0.3"], "unknown key model.head.dropot"),
        (["modl=resnet18"], "modl"),
        (["model.head.dropout=high"], "model.head.dropout=high"),
        (["model.head.dropout=1.5"], "model.head.dropout=1.5"),
        (["trainer.epochs=-1"], "trainer.epochs=-1"),
        (["trainer.precision=bf16"], "trainer.precision=bf16"),
        (["split=stratifid"], "unknown choice split=stratifid, did you mean stratified?"),
        (["scheduler=cyclic", "scheduler.base_lr=0.1"], "base_lr=0.1 is above max_lr=0.006"),
        (["model.backbone=resnet19"], "model.backbone=resnet19"),
        (["callbacks.checkpoint.monitor=dev/F1"], "callbacks.checkpoint.monitor=dev/F1"),
        (["model.head.dropout"], "model.head.dropout"),
        (["optimizer.lr=0.1"], "optimizer.lr has no effect, since scheduler=onecycle"),
        (["results.sensitivity=0.8"], "results.sensitivity has no effect"),
        (
            ["callbacks=lr_range_test", "scheduler.max_lr=0.1"],
            "scheduler.max_lr would be replaced by the range test",
        ),
        (["trainer=null"], "must be a string or a list"),
        (["data.augment={"], "can't read the override data.augment={: "),
        (["data=idc", "data.root=a(1).zip"], "need quotes within quotes"),
    ],
)
def test_a_misspelt_key_or_value(
    refused: Callable[..., str], overrides: list[str], said: str
) -> None:
    assert said in refused(*overrides)


def test_a_loss_that_is_no_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = Command(tmp_path, capsys, monkeypatch)(
        *SMALL, "scheduler=none", "optimizer.lr=1e30", "trainer.precision=32-true"
    )
    assert ended.code == 1
    assert ended.left == []
    assert len(ended.err.strip().splitlines()) == 1
    assert "training diverged: the loss is nan at step" in ended.err
    assert "learning rate 1e+30" in ended.err


class Hostile:
    """Would make a file, were it unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (self.made,)  # type: ignore[return-value]


def test_weights_that_cannot_be_used(refused: Callable[..., str], tmp_path: Path) -> None:
    whole, cut, other, hostile = (tmp_path / f"{n}.pth" for n in ("whole", "cut", "other", "bad"))
    torch.save(get_model("shufflenet_v2_x0_5").state_dict(), whole)
    cut.write_bytes(whole.read_bytes()[:-5000])
    torch.save(get_model("squeezenet1_1").state_dict(), other)
    with hostile.open("wb") as file:
        pickle.dump(Hostile(tmp_path / "made"), file)
    assert "damaged, incomplete" in refused(*SMALL, f"model.weights={cut}")
    assert "not of model.backbone=shufflenet" in refused(*SMALL, f"model.weights={other}")
    assert f"can't read {hostile}" in refused(*SMALL, f"model.weights={hostile}")
    assert "no such checkpoint" in refused(*SMALL, "model.weights=nowhere.pth")
    assert not (tmp_path / "made").exists()


def test_a_run_folder_that_cannot_be_written(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    said = refused(*SMALL, f"hydra.run.dir={tmp_path}/file/run")
    assert f"{tmp_path}/file" in said
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("mistake", [(), ("model.head.dropot=1",), ("data=idc",)])
def test_a_run_folder_with_files_is_left_alone(
    refused: Callable[..., str], tmp_path: Path, mistake: tuple[str, ...]
) -> None:
    kept = tmp_path / "kept" / "thesis.tex"
    kept.parent.mkdir()
    kept.write_text("mine")
    refused(*SMALL, *mistake, f"hydra.run.dir={kept.parent}")
    refused("-m", *SMALL, *mistake, f"hydra.sweep.dir={kept.parent}")
    assert [path.name for path in kept.parent.iterdir()] == ["thesis.tex"]
    assert kept.read_text() == "mine"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_gpu_that_is_absent(refused: Callable[..., str]) -> None:
    assert "no CUDA GPU is present" in refused("trainer=gpu")
    assert "needs a GPU" in refused("trainer=cpu", "trainer.precision=16-mixed")


def test_images_of_other_modes_are_converted_and_counted(
    spoiled: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = [path for path in files(spoiled) if Image.open(path).size == (50, 50)]
    Image.open(whole[0]).convert("L").save(whole[0])
    Image.open(whole[1]).convert("RGBA").save(whole[1])
    grey = np.asarray(Image.open(whole[2]).convert("L"), dtype=np.uint16)
    Image.fromarray(grey * 257).save(whole[2])
    ended = Command(tmp_path, capsys, monkeypatch)(*IDC, f"data.root={spoiled}")
    assert ended.code == 0
    for kind in ("grey", "RGBA", "16-bit"):
        assert f"converted 1 {kind} patches to RGB" in ended.out


@pytest.mark.parametrize("learned", [False, True])
def test_an_interrupted_run_is_kept_if_it_can_go_on(
    learned: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(self: IDCClassifier) -> None:
        if learned:
            (tmp_path / "run" / "checkpoints").mkdir(exist_ok=True)
            (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(IDCClassifier, "on_train_epoch_start", interrupt)
    ended = Command(tmp_path, capsys, monkeypatch)(*SMALL, "hydra.run.dir=run")
    assert ended.code == 1
    how = f": to go on, resume={tmp_path}/run" if learned else ""
    assert ended.err.strip().endswith(f"error: interrupted{how}")
    left = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert left == ({"run"} if learned else set())


@pytest.mark.parametrize("error", [IDCError("disk full"), KeyboardInterrupt(), ZeroDivisionError()])
def test_results_are_kept_if_what_follows_them_fails(
    error: BaseException,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(folder: Path, *_: object) -> None:
        (folder / "results.json").write_text("{}")
        raise error

    monkeypatch.setattr("idc_lightning.explore.write_tables", fail)
    run = Command(tmp_path, capsys, monkeypatch, explore)
    with pytest.raises(ZeroDivisionError) if type(error) is ZeroDivisionError else nullcontext():
        assert run("data.patients=3", "data.patches=30", "hydra.run.dir=run").code == 1
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith("run")} == {
        "run.failed"
    }
    assert (tmp_path / "run.failed" / "results.json").read_text() == "{}"
    said = {IDCError: "disk full", KeyboardInterrupt: "interrupted"}
    assert (tmp_path / "run.failed" / "error.txt").read_text() == (
        said.get(type(error), repr(error)) + "\n"
    )


def test_a_defect_keeps_its_traceback_but_leaves_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: IDCClassifier) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(IDCClassifier, "on_train_epoch_start", fail)
    with pytest.raises(ZeroDivisionError):
        Command(tmp_path, capsys, monkeypatch)(*SMALL, "hydra.run.dir=run")
    assert not (tmp_path / "run").exists()


def draw_late(path: Path, *_: object, **__: object) -> None:
    """Stands for a landscape that takes its time."""
    time.sleep(0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_nothing_is_drawn_into_the_folder_of_a_run_whose_report_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise IDCError("no room for the report")

    monkeypatch.setattr("idc_lightning.report.run.by_patient", fails)
    monkeypatch.setattr("idc_lightning.report.sections.draw_landscape", draw_late)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # so that most are still to be drawn
    ended = Command(tmp_path, capsys, monkeypatch)(
        *SMALL, "report.enabled=true", "split.dev=0.4", "split.test=0.4", "hydra.run.dir=outputs/a"
    )
    assert ended.err == "error: no room for the report\n"
    assert ended.left == ["a.failed"]
    time.sleep(1)
    assert not (tmp_path / "outputs" / "a").exists()
