"""What the benchmark's numbers depend on: the notebook's loop, its rows, memory, its command."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_data import make_patches, pixels_of, tissue
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image
from torch import Tensor

from benchmarks import (
    full_scale,
    machine,
    measure,
    notebook_loop,
    rows,
    run,
    same_result,
    table,
)
from benchmarks.notebook_loop import NotebookLoop, decode_one_by_one
from benchmarks.ours import (
    WARM_UP,
    bare_steps,
    configured,
    flops_per_image,
    ready_data,
    train_by_framework,
)
from idc_lightning.classifier import IDCClassifier
from idc_lightning.conf_folder import conf_folder
from idc_lightning.config import Config
from idc_lightning.data.demo import make_demo
from idc_lightning.data.index import read_index

SPLITS = {"1": "train", "2": "train", "3": "dev", "4": "test"}
PATCHES = tissue({"1": (30, 10), "2": (20, 10), "3": (30, 5), "4": (9, 3)})
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture
def loop(tmp_path: Path) -> NotebookLoop:
    """The notebook on four patients: 70 patches of train, 35 of dev, 12 of test."""
    return loop_of(tmp_path)


def loop_of(folder: Path, learning: notebook_loop.Learning = "head") -> NotebookLoop:
    index = read_index(make_patches(folder / "tissue", PATCHES))
    table = index.table.assign(split=index.table["patient_id"].map(SPLITS))
    return NotebookLoop(table, index.root, learning=learning)


def weights(loop: NotebookLoop, *, of_head: bool) -> dict[str, Tensor]:
    named = loop.network.named_parameters()
    return {n: w.detach().clone() for n, w in named if n.startswith("fc.") == of_head}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return any(not torch.equal(before[name], after[name]) for name in before)


def test_train_is_shuffled_in_whole_batches_and_dev_in_order_with_the_rest(
    loop: NotebookLoop,
) -> None:
    sizes = {
        phase: [len(batch["label"]) for batch in of_phase]
        for phase, of_phase in loop.loaders.items()
    }
    assert sizes == {"train": [32, 32], "dev": [32, 3], "test": [12]}
    first = next(iter(loop.loaders["train"]))
    assert first["image"].shape == (32, 3, 50, 50)
    assert first["image"].dtype == torch.float32
    assert first["label"].dtype == torch.int64
    orders = [[*next(iter(loop.loaders["train"]))["y"].tolist()] for _ in range(2)]
    assert orders[0] != orders[1]


def test_images_of_dev_are_normalised_as_imagenet_and_those_of_train_flipped_too(
    loop: NotebookLoop,
) -> None:
    batch = next(iter(loop.loaders["dev"]))
    place = (batch["patient_id"][5], int(batch["x"][5]), int(batch["y"][5]), int(batch["label"][5]))
    wanted = (pixels_of(place) / 255 - MEAN) / STD
    np.testing.assert_allclose(batch["image"][5].permute(1, 2, 0), wanted, atol=1e-5)

    dataset = loop.loaders["train"].dataset
    views = {dataset[0]["image"].numpy().tobytes() for _ in range(60)}
    assert len(views) == 4


def test_a_small_patch_is_stretched(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((50, 7, 3), dtype=np.uint8))
    assert notebook_loop.transform_of("dev")(image).shape == (3, 50, 50)


def test_only_the_head_learns_but_the_whole_net_gets_gradients(loop: NotebookLoop) -> None:
    before = weights(loop, of_head=True), weights(loop, of_head=False)
    statistics = loop.network.get_buffer("bn1.running_mean").clone()
    loop.run_phase("train")
    assert changed(before[0], weights(loop, of_head=True))
    assert not changed(before[1], weights(loop, of_head=False))
    assert all(weight.grad is not None for weight in loop.network.parameters())
    assert not torch.equal(statistics, loop.network.get_buffer("bn1.running_mean"))


def test_everything_learns_in_the_other_variant(tmp_path: Path) -> None:
    loop = loop_of(tmp_path, "everything")
    before = weights(loop, of_head=False)
    loop.run_phase("train")
    assert changed(before, weights(loop, of_head=False))


def test_each_epoch_passes_all_phases_and_steps_the_rate_by_batch(loop: NotebookLoop) -> None:
    seconds = loop.epochs(2)
    assert {phase: len(losses) for phase, losses in loop.losses.items()} == dict.fromkeys(
        ("train", "dev", "test"), 2
    )
    assert all(value > 0 for value in seconds.values())
    low, high = notebook_loop.RATES
    assert loop.scheduler.get_last_lr() == [pytest.approx(low + (high - low) * 4 / 30)]


def test_dev_changes_nothing_in_the_net(loop: NotebookLoop) -> None:
    before = {name: value.clone() for name, value in loop.network.state_dict().items()}
    loop.run_phase("dev")
    assert not changed(before, dict(loop.network.state_dict()))


def test_decoding_one_by_one_gives_the_pixels(tmp_path: Path) -> None:
    index = read_index(make_patches(tmp_path / "tissue", PATCHES[:3]))
    paths = index.table["path"].tolist()
    places = index.table[["patient_id", "x", "y", "target"]].itertuples(index=False, name=None)
    wanted = np.stack([pixels_of(place) for place in places])
    assert np.array_equal(decode_one_by_one(index.root, paths), wanted)


def test_ratios_say_how_many_times_better_ours_is() -> None:
    rate = measure.rate_row("r", 300.0, 100.0, 2)
    assert (rate.ratio, rate.unit, rate.met) == (3.0, "images/s", True)
    seconds = measure.seconds_row("s", 10.0, 300.0, 35)
    assert (seconds.ratio, seconds.unit, seconds.met) == (30.0, "s", False)


@pytest.mark.parametrize(("ours", "met"), [(1.5, True), (1.51, False), (None, None)])
def test_a_bound_is_met_from_below(ours: float | None, met: bool | None) -> None:
    assert measure.bound_row("m", ours, 1.5, unit="GB").met is met


def test_results_have_the_six_values_of_each_row_and_keep_rows_measured_before(
    tmp_path: Path,
) -> None:
    path = tmp_path / "results.json"
    both = [measure.rate_row("a", 1.0, 3.0, 2), measure.rate_row("b", 4.0, 2.0, 2)]
    measure.write_rows(both, path)
    measure.write_rows([measure.bound_row("m", 1.23456789, 1.5, unit="GB", note="n")], path)
    assert [values["row"] for values in measure.read_rows(path)] == ["m"]
    again = [measure.rate_row("a", 9.0, 3.0, 2)]
    before = [*(row.values() for row in both), *measure.read_rows(path)]
    measure.write_rows(again, path, before=before)
    assert json.loads(path.read_text()) == [
        {"row": "a", "ours": 9.0, "other": 3.0, "unit": "images/s", "ratio": 3.0, "must": 2},
        {"row": "b", "ours": 4.0, "other": 2.0, "unit": "images/s", "ratio": 2.0, "must": 2},
        {"row": "m", "ours": 1.235, "other": None, "unit": "GB", "ratio": None, "must": 1.5},
    ]
    printed = table.markdown(measure.read_rows(path)).splitlines()
    assert printed[2] == "| a | 9 | 3 | images/s | 3 | 2 x | yes |"
    assert printed[4] == "| m | 1.235 | - | GB | - | at most 1.5 GB | yes |"


def test_the_printed_table_says_what_is_met(capsys: pytest.CaptureFixture[str]) -> None:
    missed = measure.rate_row("slow", 1.0, 2.0, 1, note="why")
    measure.print_rows([missed, measure.bound_row("memory", None, 1.5, unit="GB")])
    out = capsys.readouterr().out
    assert "NO" in out
    assert "not measured" in out
    assert "slow: why" in out


def test_ways_alternate_after_a_turn_that_warms_up() -> None:
    turns: list[str] = []

    def way(name: str, values: list[float]) -> float:
        turns.append(name)
        return values.pop(0)

    ours, other = [99.0, 1.0, 5.0, 3.0], [99.0, 2.0, 2.0, 8.0]
    found = measure.medians(lambda: way("a", ours), lambda: way("b", other), number=3)
    assert found == (3.0, 2.0)
    assert "".join(turns) == "abababab"


HOLD = """
import os, sys, time
held = bytearray(int(sys.argv[1]))
held[::4096] = b"x" * len(held[::4096])
time.sleep(0.5)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_counts_what_a_process_and_its_child_allocate_but_no_mapped_file(
    tmp_path: Path,
) -> None:
    (tmp_path / "hold.py").write_text(HOLD)
    (tmp_path / "parent.py").write_text(
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, r'{tmp_path}/hold.py', '100000000'])"
    )
    (tmp_path / "mapped.py").write_text(
        "import numpy, sys, time\n"
        "held = numpy.memmap(sys.argv[1], mode='r'); held.sum(); time.sleep(0.5)"
    )
    big = tmp_path / "big"
    big.write_bytes(bytes(100_000_000))
    (tmp_path / "forked.py").write_text(HOLD.replace("time.sleep", "os.fork(); time.sleep"))
    little, much, below, mapped, forked = (
        watched(tmp_path / name, *given)
        for name, given in [
            ("hold.py", ["1000"]),
            ("hold.py", ["100000000"]),
            ("parent.py", []),
            ("mapped.py", [str(big)]),
            ("forked.py", ["100000000"]),
        ]
    )
    assert 90e6 < much.peak - little.peak < 120e6
    assert 90e6 < below.peak - little.peak < 120e6
    assert 90e6 < forked.peak - little.peak < 120e6
    assert mapped.peak < little.peak + 60e6
    assert mapped.maxrss > 100e6


def watched(script: Path, *given: str) -> measure.MemoryWatch:
    child = subprocess.Popen([sys.executable, script, *given])
    with measure.MemoryWatch(child.pid) as memory:
        assert child.wait() == 0
    return memory


def test_a_child_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"zipfile -l nowhere ended with exit code 1:\n(.*\n)*"):
        measure.run_child("zipfile", "-l", "nowhere")


def test_the_chip_multiplies_and_the_net_has_the_operations_of_resnet18_at_50_pixels() -> None:
    assert measure._matmul_rate(64, torch.float32, 0.01) > 0
    config = configured("model.weights=none")
    network = IDCClassifier(config.model, config.optimizer, config.scheduler).network
    assert flops_per_image(network) / 1e9 == pytest.approx(0.247, abs=0.001)


def test_the_grid_has_as_many_runs_as_its_row_says() -> None:
    choices = [len(override.split("=")[1].split(",")) for override in rows.GRID]
    assert np.prod(choices) == rows.GRID_RUNS == 12


def test_the_notebooks_epochs_are_scaled_by_the_patches_of_each_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of(tmp_path, sample=240)
    seconds = {"train": 1.0, "dev": 2.0, "test": 4.0}
    monkeypatch.setattr(NotebookLoop, "epochs", lambda self, number: seconds)
    sizes = bench.notebook.sizes
    assert 200 < sum(sizes.values()) < 260
    counts = bench.data.table["split"].value_counts()
    wanted = 3 * sum(seconds[phase] * counts[phase] / sizes[phase] for phase in seconds)
    assert bench.notebook_seconds() == pytest.approx(wanted)


def bench_of(folder: Path, *, sample: int) -> rows.Bench:
    make_demo(folder / "demo", patients=8, patches=480, seed=0)
    scale = small_scale(sample)
    return rows.Bench(folder / "demo", folder / "work", scale, full_cache=None, whole=True)


def small_scale(sample: int) -> rows.Scale:
    return rows.Scale(
        patches=None,
        alternations=1,
        runs=1,
        epochs=3,
        sample=sample,
        batches=2,
        loading=0.01,
        report=False,
    )


def test_rows_of_store_and_data_path_are_measured(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, sample=200)
    found = [row for _, of_name, _ in rows.measured(bench, ["store", "loading"]) for row in of_name]
    assert [row.must for row in found] == [1.5, 12]
    for row in found:
        assert row.ours is not None
        assert row.other is not None
        assert row.ratio == row.ours / row.other
        assert row.unit == "images/s"


class Commands:
    """Stands in for child processes: composes and checks what they are given, runs nothing.

    Attributes:
        jobs: The configurations of each command, one of a run and several of a sweep.
    """

    def __init__(self) -> None:
        self.jobs: list[list[Config]] = []

    def __call__(self, module: str, *given: str) -> measure.Ended:
        assert module == "idc_lightning.train"
        overrides = [override for override in given if override != "-m"]
        sweeps = "-m" in given
        parsed = OverridesParser.create().parse_overrides(overrides)
        (jobs,) = BasicSweeper.split_arguments(parsed, None) if sweeps else [[overrides]]
        self.jobs.append([])
        for number, job in enumerate(jobs):
            with initialize_config_dir(str(conf_folder()), version_base="1.3"):
                composed = compose("train", overrides=list(job), return_hydra_config=True)
            folder = Path(composed.hydra.sweep.dir, str(number))
            if not sweeps:
                folder = Path(composed.hydra.run.dir)
            config = configured(*job)
            assert config.idle({override.partition("=")[0] for override in job}) is None
            config.cache.mkdir(parents=True, exist_ok=True)
            folder.mkdir(parents=True)
            (folder / "results.json").touch()
            self.jobs[-1].append(config)
        return measure.Ended(10.0, 1_000_000_000, 2_000_000_000, "")


def test_rows_of_steps_predictions_and_whole_runs_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tiny(rows.Bench):
        def overrides(self, cache: Path) -> tuple[str, ...]:
            small = ("model.backbone=shufflenet_v2_x0_5", "data.batch_size=16")
            return (*super().overrides(cache), *small)

    commands = Commands()
    monkeypatch.setattr(rows, "run_child", commands)
    monkeypatch.setattr(rows, "matrix_rate", lambda dtype: 1e11)
    make_demo(tmp_path / "demo", patients=8, patches=240, seed=0)
    scale = small_scale(120)
    bench = Tiny(tmp_path / "demo", tmp_path / "work", scale, full_cache=None, whole=False)
    names = ["training", "predictions", "cold", "warm", "grid", "memory"]
    found = [row for _, of_name, _ in rows.measured(bench, names) for row in of_name]
    bench.full_cache = tmp_path / "full"
    found += bench.memory()

    committed = {values["row"] for values in measure.read_rows(measure.RESULTS)}
    assert {row.row for row in found} <= committed | {"a grid of 12 such runs"}
    assert [row.must for row in found] == [1.8, 0.95, 2, 0.6, 35, 90, 80, 1.5, 1.5]
    assert all(row.ours is not None and row.ours > 0 for row in found)
    assert [row.unit for row in found] == ["images/s"] * 4 + ["s"] * 3 + ["GB"] * 2
    notes = [row.note for row in found]
    assert "3 epochs of 240 patches" in notes[4]
    assert "240 patches" in notes[7]
    assert "277,524 patches" in notes[8]

    cold, warm, grid, small, full = commands.jobs
    assert [len(jobs) for jobs in commands.jobs] == [1, 1, rows.GRID_RUNS, 1, 1]
    for config in (*cold, *warm, *grid, *small, *full):
        assert config.model.freeze_backbone
        assert config.model.weights == "none"
    assert cold[0].cache == warm[0].cache == grid[0].cache
    assert [config.trainer.epochs for config in (*cold, *warm, *grid)] == [3] * 14
    assert [config.trainer.epochs for config in (*small, *full)] == [1, 1]
    assert len({config.digest() for config in grid}) == rows.GRID_RUNS
    assert full[0].data.name == "demo"


def test_steps_are_timed_with_and_without_the_framework(tmp_path: Path) -> None:
    make_demo(tmp_path / "demo", patients=8, patches=160, seed=0)
    config = configured(
        "data=idc",
        f"data.root={tmp_path}/demo",
        f"cache={tmp_path}/cache",
        "data.batch_size=8",
        "model.backbone=shufflenet_v2_x0_5",
        "model.weights=none",
        "trainer=cpu",
        "trainer.epochs=1",
    )
    data = ready_data(config)
    taken: list[int] = []

    def slow_steps() -> Iterator[None]:
        for step, _ in enumerate(bare_steps(config, data)):
            taken.append(step)
            time.sleep(0.2)
            yield

    watch = train_by_framework(config, data, tmp_path / "logs", 3, slow_steps())
    assert len(taken) == WARM_UP + 3
    assert watch.images == 3 * 8
    assert len(watch.steps) == len(watch.others) == 3
    assert min(watch.others) > 0.2
    assert min(watch.steps) > 0
    # The steps of the other loop, of which its end is shorter, aren't of the epoch.
    assert sum(watch.steps) < watch.seconds < sum(watch.steps) + sum(watch.others)
    assert time.time() - 60 < watch.first_step < time.time()
    assert (tmp_path / "logs" / "metrics.csv").is_file()
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not torch.are_deterministic_algorithms_enabled()


def test_memory_of_the_full_data_is_not_measured_without_its_cache(tmp_path: Path) -> None:
    (row,) = rows.Bench(
        tmp_path, tmp_path, rows.SCALES["full"], full_cache=None, whole=True
    ).memory()
    assert row.met is None
    assert "--full-cache" in row.note
    assert "277,524 patches" in row.note


def test_the_command_measures_the_rows_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "DEMO", {"quick": (8, 320)})
    monkeypatch.setitem(run.SCALES, "quick", small_scale(200))
    monkeypatch.delenv("IDC_ROOT", raising=False)
    out = tmp_path / "results.json"
    options = run.parsed(["quick", "--rows", "loading", "--out", str(out)])
    found = run.run(options, tmp_path / "scratch")
    assert [row.values() for row in found] == json.loads(out.read_text())
    assert set(json.loads(out.read_text())[0]) == set(measure.COLUMNS)
    assert "python -m benchmarks.run quick" in capsys.readouterr().out


def test_each_scale_keeps_its_results_in_a_file_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.parsed([]).out == measure.RESULTS
    assert run.parsed([f"--out={measure.RESULTS}"]).out == measure.RESULTS
    assert run.parsed(["quick"]).out == measure.RESULTS.with_name("results_quick.json")
    assert run.parsed(["quick", f"--out={tmp_path}/new.json"]).out == tmp_path / "new.json"
    (tmp_path / "old.json").write_text("[]")
    for scale, out in [
        ("quick", measure.RESULTS),
        ("full", run.OUT["quick"]),
        ("full", tmp_path / "old.json"),
    ]:
        with pytest.raises(SystemExit):
            run.parsed([scale, f"--out={out}"])
        assert f"{out} may hold another scale" in capsys.readouterr().err


def test_full_scale_goes_on_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[str, int]] = []

    def ended(stage: str, point: full_scale.Point) -> measure.Ended:
        called.append((stage, point.patches))
        if len(called) == 3:
            raise KeyboardInterrupt
        printed = '{"seconds": 2.0, "start": 7.0}' if "finetune" in stage else "done"
        return measure.Ended(9.0, 1_500_000_000, 2_000_000_000, printed)

    for stage in full_scale.STAGES:
        monkeypatch.setitem(full_scale.STAGES, stage, lambda point, s=stage: ended(s, point))
    out = tmp_path / "full_scale.json"
    version = full_scale.MEASUREMENT
    index = {"stage": "index", "seconds": 1.0, "peak_gb": 1.0, "maxrss_gb": 1.0, "commit": None}
    before = [
        index | {"patches": 60_000, "measurement": version},
        index | {"patches": 120_000, "measurement": 1},
        index | {"patches": 26_664, "measurement": 1},
    ]
    out.write_text(json.dumps(before))
    with pytest.raises(KeyboardInterrupt):
        full_scale.measure_all(tmp_path, [26_664], out)
    other, *entries = full_scale.measure_all(tmp_path, [26_664], out)
    assert other == before[0]
    assert [entry["stage"] for entry in entries] == list(full_scale.STAGES)
    assert {entry["measurement"] for entry in entries} == {version}
    assert {entry["commit"] for entry in entries} == {machine.commit()}
    assert len(called) == len(full_scale.STAGES) + 1
    assert full_scale.read(out) == [*before[:2], *entries]
    printed = full_scale.markdown(entries)
    assert "| index | 9.0 s, 1.50 GB |" in printed
    assert "| 2.0 s, 1.50 GB, first step after 7.0 s |" in printed


def test_the_commit_is_that_of_the_project_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert machine.commit() is None
    git = ("git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run([*git, "init", "-q"], check=True)
    assert machine.commit() is None
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    assert len(machine.commit() or "") >= 4
    (tmp_path / "copy").mkdir()
    monkeypatch.setattr(machine, "ROOT", tmp_path / "copy")
    assert machine.commit() is None


def test_the_header_names_command_and_versions() -> None:
    printed = machine.header("python -m benchmarks.run")
    assert "`python -m benchmarks.run`" in printed
    assert torch.__version__ in printed


def test_results_are_the_same_to_three_decimals() -> None:
    ours = {"f1": 0.8512, "auroc": 0.93, "brier": 0.1}
    assert same_result.differing(ours, {"f1": 0.85155, "auroc": 0.9304, "brier": 0.1}) == []
    found = same_result.differing(ours, {"f1": 0.8518, "auroc": 0.93, "brier": float("nan")})
    assert found == ["f1", "brier"]


def test_networks_are_held_against_each_other() -> None:
    ours = {"weight": torch.tensor([0.5, 1.0]), "steps": torch.tensor(3)}
    other = {"weight": torch.tensor([0.5, 0.75]), "steps": torch.tensor(3)}
    assert same_result.weight_difference(ours, other) == 0.25
    with pytest.raises(ValueError, match="other layers"):
        same_result.weight_difference(ours, {"weight": torch.ones(2)})
