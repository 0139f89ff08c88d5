"""Configurations of all kinds: each ends in a run or in one clear line.

Every file of ``conf/`` with every experiment, random valid values, and random invalid ones.
"""

import string
from pathlib import Path

import numpy as np
import pytest
from helpers_campaign import Campaign, error_of, run
from helpers_command import SMALL
from helpers_model import composed
from omegaconf import OmegaConf

from idc_lightning.conf_folder import conf_folder

pytestmark = pytest.mark.campaign

VALID, INVALID = 300, 300
"""How many random ones are tried."""

QUICK = (*SMALL[:2], "debug=fast", "data.batch_size=32", "results.draws=20", "cache=cache")
NET = ("model.backbone=shufflenet_v2_x0_5", "model.head.hidden=[16]", "model.weights=none")

PRETRAINING = ("pretraining.epochs=1", "pretraining.batch_size=32")

EXPERIMENTS = {
    "none": (),
    "finetune": ("experiment=finetune",),
    "notebook": ("experiment=notebook", "model.frozen_batchnorm=adapt"),
    "context": ("experiment=context", "data.crop=2", *PRETRAINING),
}

ELSEWHERE = {
    "trainer=gpu": "GPU",
    "trainer=ddp": "GPU",
    "trainer=slurm": "GPU",
    "split=file": "split.path",
    "split=cruz_roa_2014": "",
    "split=notebook": "",
    "data=idc": "data.root",
}
"""Files that this machine or this data can't be used with, and a word of the line that says so."""

ALONE = ("data=base", "hydra", "experiment")
"""What isn't a choice of ``idc-train`` beside an experiment."""

SCALES = ("0.001", "0.1", "1")
"""Of strictly positive values."""

VALUES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("data.edge_patches",): ("pad", "resize", "drop"),
    ("data.on_broken",): ("error", "skip"),
    ("data.on_conflict",): ("error", "drop"),
    ("data.sample",): ("300", "450", "100000"),
    ("data.microns_per_pixel",): ("0.25", "4", "100"),
    ("data.batch_size",): ("2", "7", "64", "200"),
    ("data.eval_batch_size",): ("1", "33", "4096"),
    ("data.drop_last",): ("true", "false"),
    ("data.workers",): ("0", "1", "2"),
    ("data.device_resident",): ("auto", "off"),
    ("model.freeze_backbone=true", "data.augment.stain_jitter=0", "data.features"): ("auto", "off"),
    ("data.augment.horizontal_flip",): ("true", "false"),
    ("data.augment.vertical_flip",): ("true", "false"),
    ("data.augment.turns",): ("true", "false"),
    ("data.augment.stain_jitter",): ("0", "0.05", "1"),
    ("data.augment.brightness",): ("0", "0.3", "2"),
    ("data.crop=2", "data.window"): ("9", "40", "1000"),
    ("data.crop=2", "data.margin"): ("0", "1", "19"),
    ("data.crop=3", "model.context.name=grid", "data.margin=8", "model.context.blocks"): ("1", "4"),
    ("data.crop=3", "model.context.name=grid", "model.context.width"): ("1", "32"),
    ("data.crop=2", "pretraining=patches", "model.context.with_single"): ("true", "false"),
    ("model.context.name=smooth", "model.context.bandwidth"): ("auto", "0.01", "16"),
    ("data.patches",): ("300", "500", "2000"),
    ("data.patients",): ("9", "12", "40"),
    ("data.seed",): ("0", "4294967295"),
    ("split.dev",): ("0.2", "0.3"),
    ("split.test",): ("0.2", "0.3"),
    ("split.seed",): ("0", "1", "4294967295"),
    ("split=kfold", "split.folds=3", "split.fold"): ("0", "1", "2"),
    ("split=kfold", "split.folds"): ("3", "4", "5"),
    ("model.backbone",): ("resnet18", "squeezenet1_1", "mobilenet_v3_small", "mnasnet0_5"),
    ("model.freeze_backbone=true", "model.frozen_batchnorm"): ("adapt",),
    ("model.freeze_backbone",): ("true", "false"),
    ("model.test_time_augmentation",): ("true", "false"),
    ("model.head.hidden",): ("[]", "[1]", "[64,32,16]"),
    ("model.head.dropout",): ("0", "0.99"),
    ("model.head.bias",): ("-3", "0", "0.5"),
    ("model.loss.class_weights",): ("balanced", "none", "[1,5]", "[0.001,1000.0]"),
    ("model.loss.label_smoothing",): ("0", "0.1", "0.9"),
    ("optimizer=adamw", "optimizer.weight_decay"): ("0", *SCALES),
    ("optimizer=adamw", "optimizer.betas"): ("[0.0,0.5]", "[0.9,0.999]"),
    ("optimizer.momentum",): ("0.5", "0.99"),
    ("optimizer.nesterov",): ("true", "false"),
    ("optimizer.weight_decay",): ("0", *SCALES),
    ("scheduler=none", "optimizer.lr"): SCALES,
    ("scheduler=cosine", "scheduler.min_lr"): ("0", "0.001"),
    ("scheduler=cyclic", "scheduler.half_cycle"): ("0.01", "1", "1000"),
    ("scheduler=cyclic", "scheduler.unit"): ("epochs", "steps"),
    ("scheduler=cyclic", "scheduler.cycle_momentum"): ("null", "[0.85,0.95]"),
    ("scheduler.max_lr",): ("1.0e-8", *SCALES),
    ("scheduler.warmup",): ("0.01", "0.99"),
    ("trainer.precision",): ("auto", "32-true"),
    ("trainer.epochs",): ("1", "2"),
    ("trainer.gradient_clip",): ("null", *SCALES),
    ("trainer.deterministic",): ("true", "false", "warn"),
    ("trainer.log_every_n_steps",): ("1", "1000"),
    ("trainer.profiler",): ("null", "simple", "advanced"),
    ("trainer.timeout",): ("60", "100000"),
    ("callbacks.checkpoint.monitor",): ("dev/loss", "dev/auroc", "dev/average_precision"),
    ("callbacks.checkpoint.last_every",): ("0", "0.01", "1000"),
    ("callbacks=early_stopping", "callbacks.early_stopping.monitor"): ("dev/recall", "dev/loss"),
    ("callbacks=early_stopping", "callbacks.early_stopping.patience"): ("1", "50"),
    ("callbacks=lr_range_test", "callbacks.lr_range_test.ramp"): ("linear", "exponential"),
    ("callbacks=lr_range_test", "callbacks.lr_range_test.steps"): ("10", "25"),
    ("callbacks=lr_range_test", "callbacks.lr_range_test.apply"): ("true", "false"),
    ("callbacks=lr_range_test", "callbacks.lr_range_test.smoothing"): ("0.01", "1"),
    ("callbacks.ema_decay",): ("null", "0.01", "0.999"),
    ("callbacks.progress",): ("auto", "rich", "plain", "none"),
    ("logger.tensorboard",): ("true", "false"),
    ("logger.csv",): ("true", "false"),
    ("results.threshold",): ("max_f1", "sensitivity", "0.25"),
    ("results.threshold=sensitivity", "results.sensitivity"): ("0.5", "0.999"),
    ("results.draws",): ("1", "50"),
    ("results.confidence",): ("0.01", "0.5", "0.99"),
    ("seed",): ("0", "1", "4294967295"),
}
"""Values that are allowed, by the words that come before them."""

FREE = ("cache", "data.root", "report.patients", "sweep.study", "model.weights")
"""Keys of which nearly every text is a value."""


def files() -> list[str]:
    """Each file of each group as it is typed."""
    paths = sorted(conf_folder().glob("*/*.yaml"))
    found = [f"{path.parent.name}={path.stem}" for path in paths]
    return [word for word in found if not word.startswith(ALONE)]


def test_each_file_is_named_or_meant_for_here() -> None:
    assert set(ELSEWHERE) <= set(files())


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("word", files())
def test_each_file_runs_with_each_experiment(
    word: str, experiment: str, tmp_path: Path, campaign: Campaign
) -> None:
    debug = [each for each in QUICK if not (word.startswith("debug") and each.startswith("debug"))]
    words = [*EXPERIMENTS[experiment], *debug, *NET, "trainer=cpu", "report=none"]
    if word == "pretraining=none":
        words = [each for each in words if each not in PRETRAINING]
        words.append("model.context.with_single=false")  # there is no second network
    if word.startswith("data"):
        words = [each for each in words if not each.startswith(SMALL[:2])]
        words = ["data.patients=12", "data.patches=480", *words] if word == "data=demo" else words
    if word.startswith("trainer=ddp_cpu"):
        pytest.skip("processes of a forked process: tests/test_ranks.py runs them")
    ended = run("train", *words, word, "trainer.epochs=1", within=tmp_path)
    if word in ELSEWHERE and ended.returncode:
        assert ELSEWHERE[word] in error_of(ended)
        campaign.count("files with experiments", "told")
    else:
        assert ended.returncode == 0, ended.stderr
        campaign.count("files with experiments", "ran")


def drawn(rng: np.random.Generator) -> list[str]:
    """One to four valid values of different keys, with the words that they need."""
    names = list(VALUES)
    chosen = [names[n] for n in rng.choice(len(names), rng.integers(1, 5), replace=False)]
    words: dict[str, str] = {}
    for *needed, key in chosen:
        of_it = [*needed, f"{key}={rng.choice(VALUES[*needed, key])}"]
        if not {word.partition("=")[0] for word in of_it} & set(words):
            words |= {word.partition("=")[0]: word for word in of_it}
    return list(words.values())


@pytest.mark.parametrize("number", range(VALID))
def test_random_valid_values_run_or_are_told_not_to_fit(
    number: int, tmp_path: Path, campaign: Campaign
) -> None:
    words = drawn(campaign.rng(f"valid {number}"))
    ended = run("train", *SMALL, "results.draws=20", "cache=cache", *words, within=tmp_path)
    print(words)
    if ended.returncode:
        line = error_of(ended)
        print(line)
        assert len(words) > 1
        campaign.count("valid values", "don't go together")
    else:
        campaign.count("valid values", "ran")


def leaves() -> dict[str, object]:
    """Each key of a training, and its value."""
    found: dict[str, object] = {}

    def visit(prefix: str, values: object) -> None:
        if isinstance(values, dict) and values:
            for key, value in values.items():
                visit(f"{prefix}.{key}" if prefix else str(key), value)
        else:
            found[prefix] = values

    visit("", OmegaConf.to_container(composed("callbacks=lr_range_test"), resolve=False))
    return found


def misspelt(key: str, rng: np.random.Generator) -> str:
    """A key with a letter lost, doubled, changed or two swapped."""
    place = int(rng.integers(len(key)))
    letter = rng.choice(list(string.ascii_lowercase))
    return str(
        rng.choice(
            [
                key[:place] + key[place + 1 :],
                key[:place] + key[place] + key[place:],
                key[:place] + letter + key[place + 1 :],
                key[:place] + key[place : place + 2][::-1] + key[place + 2 :],
            ]
        )
    )


WRONG = ("banana", "[1,", "{a: 1}", "-7", "nan", "inf", "''", "9e999", "${nowhere}", "Ω", "1;2")


@pytest.mark.parametrize("number", range(INVALID))
def test_random_invalid_words_are_told_in_one_line(
    number: int, tmp_path: Path, campaign: Campaign
) -> None:
    rng = campaign.rng(f"invalid {number}")
    known = leaves()
    keys = [key for key in known if key not in FREE]
    key = str(rng.choice(keys))
    wrong = misspelt(key, rng)
    if rng.random() < 0.5 and wrong not in known:
        word, named = f"{wrong}={known[key]}", wrong
    else:
        allowed = {"model.head.bias": {"-7"}, "seed": set[str]()}.get(key, set())
        value = rng.choice([each for each in WRONG if each not in allowed])
        word, named = f"{key}={value}", key
    print(word)
    ended = run("train", *SMALL, "cache=cache", word, within=tmp_path)
    line = error_of(ended)
    print(line)
    assert named in line or word in line
    assert not (tmp_path / "cache").exists()
    campaign.count("invalid words", "told")
