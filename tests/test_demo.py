import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import idc_lightning.data.demo as demo
from idc_lightning.data.demo import make_demo
from idc_lightning.data.demo_tissue import draw, random_look
from idc_lightning.data.grid import FILE_NAME, PATCH
from idc_lightning.errors import IDCError

PATIENTS, PATCHES = 6, 600

Cell = tuple[int, int]


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*.png")
    }


def cells_of(root: Path) -> dict[str, dict[Cell, Path]]:
    """Files of each patient by x and y."""
    patients: dict[str, dict[Cell, Path]] = defaultdict(dict)
    for path in root.rglob("*.png"):
        match = FILE_NAME.fullmatch(path.name)
        assert match, path
        assert path.relative_to(root).parts[:2] == (match["patient_id"], match["target"])
        patients[match["patient_id"]][int(match["x"]), int(match["y"])] = path
    return patients


def target(path: Path) -> int:
    return int(path.parent.name)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "tissue"
    make_demo(root, patients=PATIENTS, patches=PATCHES, seed=0)
    return root


def test_same_seed_same_bytes_in_one_process_or_many(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_INLINE", 0)
    make_demo(tmp_path / "again", patients=PATIENTS, patches=PATCHES, seed=0)
    assert digests(tmp_path / "again") == digests(root)


def test_another_seed_draws_other_patients_and_pictures(root: Path, tmp_path: Path) -> None:
    make_demo(tmp_path / "other", patients=PATIENTS, patches=100, seed=1)
    assert set(cells_of(tmp_path / "other")) != set(cells_of(root))
    assert not set(digests(tmp_path / "other").values()) & set(digests(root).values())


def test_counts_are_exact_and_every_patient_has_both_classes(root: Path) -> None:
    patients = cells_of(root)
    assert len(patients) == PATIENTS
    assert sum(map(len, patients.values())) == len(list(root.rglob("*.png"))) == PATCHES
    for cells in patients.values():
        assert len(cells) >= 8
        assert {target(path) for path in cells.values()} == {0, 1}


def test_patches_lie_on_the_grid_and_only_edges_are_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_CUT", 2.0)  # all tissue reaches the right and bottom edge
    make_demo(tmp_path / "cut", patients=3, patches=300, seed=0)
    narrow = low = 0
    for cells in cells_of(tmp_path / "cut").values():
        assert all(x % PATCH == 1 and y % PATCH == 1 for x, y in cells)
        last_x, last_y = max(x for x, _ in cells), max(y for _, y in cells)
        for (x, y), path in cells.items():
            with Image.open(path) as image:
                assert image.mode == "RGB"
                width, height = image.size
            assert 1 <= width <= PATCH
            assert 1 <= height <= PATCH
            assert width == PATCH or x == last_x
            assert height == PATCH or y == last_y
            narrow += width < PATCH
            low += height < PATCH
    assert narrow
    assert low


def test_idc_is_contiguous(root: Path) -> None:
    beside_idc, all_cells = [], []
    for cells in cells_of(root).values():
        all_cells += [target(path) for path in cells.values()]
        for (x, y), path in cells.items():
            if target(path):
                around = [(x + PATCH, y), (x - PATCH, y), (x, y + PATCH), (x, y - PATCH)]
                beside_idc += [target(cells[place]) for place in around if place in cells]
    assert np.mean(beside_idc) > 0.65
    assert np.mean(beside_idc) > np.mean(all_cells) + 0.25


def test_tissue_goes_on_over_the_seams_of_patches_and_blocks() -> None:
    rng = np.random.default_rng(0)
    slide, look = demo._make_slide(rng, 400, 150), random_look(rng)
    top, left = (np.argwhere(slide.label == 1).mean(axis=0) * PATCH).astype(int)
    whole = draw(slide.maps, look, top, left, (200, 200)).astype(int)
    part = draw(slide.maps, look, top + 50, left + 100, (100, 50)).astype(int)
    assert part.std() > 10
    assert np.abs(whole[50:150, 100:150] - part).max() <= 1


def test_stain_differs_between_patients(root: Path) -> None:
    colours = []
    for cells in cells_of(root).values():
        pixels = np.concatenate([np.asarray(Image.open(p)).reshape(-1, 3) for p in cells.values()])
        stained = pixels[pixels.min(axis=1) < 200]
        colours.append(stained.mean(axis=0) - stained.mean())
    assert np.ptp(colours, axis=0).max() > 8


def test_mean_colour_tells_idc_but_not_well(tmp_path: Path) -> None:
    make_demo(tmp_path / "tissue", patients=12, patches=1200, seed=0)
    colours, targets, patients = [], [], []
    for patient, cells in cells_of(tmp_path / "tissue").items():
        for path in cells.values():
            colours.append(np.asarray(Image.open(path)).reshape(-1, 3).mean(axis=0))
            targets.append(target(path))
            patients.append(patient)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    told = cross_val_predict(
        model, colours, targets, groups=patients, cv=GroupKFold(4), method="predict_proba"
    )
    assert 0.65 < roc_auc_score(targets, told[:, 1]) < 0.85


def test_patients_span_small_to_large_and_low_to_high_share() -> None:
    cohort = demo._draw_cohort(24, None, 0)
    counts = np.array([patient.patches for patient in cohort])
    shares = np.array([patient.idc for patient in cohort]) / counts
    assert counts.min() < 250
    assert counts.max() > 1700
    assert shares.min() < 0.08
    assert shares.max() > 0.6
    assert len({patient.patient_id for patient in cohort}) == 24


def test_scaled_counts_keep_to_the_total() -> None:
    for patients, patches in ((279, 277_524), (8, 400), (5, 40), (1, 8)):
        cohort = demo._draw_cohort(patients, patches, 3)
        assert sum(patient.patches for patient in cohort) == patches
        assert min(patient.patches for patient in cohort) >= 8
        assert all(0 < patient.idc < patient.patches for patient in cohort)


@pytest.mark.parametrize(
    ("patients", "patches", "seed"),
    [(0, None, 0), (9000, None, 0), (8, 63, 0), (1, 1_000_000, 0), (8, 400, -1)],
)
def test_impossible_numbers_are_told_in_one_line(
    tmp_path: Path, patients: int, patches: int | None, seed: int
) -> None:
    with pytest.raises(IDCError, match=r"^a demo .*choose .*$"):
        make_demo(tmp_path / "tissue", patients=patients, patches=patches, seed=seed)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("mine")
    for path in (tmp_path, kept):
        with pytest.raises(IDCError, match=r"^.* exists already: .*$"):
            make_demo(path, patients=1, patches=8, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IDCError, match=r"^can't write .*$"):
        make_demo(tmp_path / "file" / "tissue", patients=1, patches=8, seed=0)


@pytest.mark.parametrize(
    ("failure", "seen"),
    [(OSError(28, "No space left on device"), IDCError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_failure_in_the_middle_leaves_no_data_set(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    seen: type[BaseException],
) -> None:
    write_patient, written = demo._write_patient, []

    def fail_at_the_second(folder: Path, patient: demo._Patient) -> None:
        if written:
            assert list(folder.rglob("*.png"))
            raise failure
        written.append(patient)
        write_patient(folder, patient)

    monkeypatch.setattr(demo, "_write_patient", fail_at_the_second)
    with pytest.raises(seen):
        make_demo(tmp_path / "tissue", patients=3, patches=30, seed=0)
    assert written
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
