import re
from pathlib import Path
from typing import Any

import pytest
from helpers_model import composed, config_of, told
from hydra.errors import HydraException
from omegaconf import OmegaConf
from pydantic import ValidationError

import idc_lightning.conf_folder
from idc_lightning.conf_folder import choices, conf_folder, describe, groups_of, keys
from idc_lightning.config import (
    CommandConfig,
    Config,
    EvaluateConfig,
    ExploreConfig,
    ModelConfig,
    PredictConfig,
    parse,
    read_config,
    refuse_misread,
)

FILES = sorted(conf_folder().rglob("*.yaml"))
CHOICES = [f"{group}={choice}" for group in groups_of("train") for choice in choices(group)]


# The commands beside idc-train, each with what it can't do without.
COMMANDS: dict[type[CommandConfig], list[str]] = {
    ExploreConfig: [],
    EvaluateConfig: ["run=a"],
    PredictConfig: ["run=a", "input=b"],
}


def flat(values: dict[str, Any], prefix: str = "") -> set[str]:
    """Dotted names of all keys below a mapping."""
    found = set()
    for key, value in values.items():
        found.add(prefix + key)
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
    return found


def described(*overrides: str) -> str:
    """What a command says of overrides that Hydra refuses."""
    with pytest.raises(HydraException) as caught:
        composed(*overrides)
    return describe(caught.value, "train")


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_file_opens_with_a_comment_on_its_use(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    first = lines[lines[0].startswith("# @package")]
    assert first.startswith("# ")
    group = file.parent.relative_to(conf_folder()).as_posix().replace("/", r"[./]")
    assert re.search(r"\bidc-\w+ " if group == "." else rf"\b{group}(\.\w+)*=", first), first
    assert len(first) <= 100


@pytest.mark.parametrize("choice", [file for file in FILES if file.parent != conf_folder()])
def test_the_use_in_a_comment_is_accepted(choice: Path) -> None:
    lines = choice.read_text(encoding="utf-8").splitlines()
    first = lines[lines[0].startswith("# @package")]
    overrides = re.findall(r"(?<!\S)[\w.]+=[\w/.\-]*\w(?=[\s.;),:]|$)", first)
    if choice.parent.name in Config.model_fields:
        config_of(*overrides)
    assert overrides or "<" in first


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_is_accepted(choice: str) -> None:
    group, _, name = choice.partition("=")
    config = config_of(choice)
    section = getattr(config, group, None)
    if section is not None and "name" in type(section).model_fields:
        file = OmegaConf.load(conf_folder() / group / f"{name}.yaml")
        assert section.name in (name, *file.get("defaults", []))


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_experiments_go_with_real_data_and_a_quick_look(experiment: str) -> None:
    config_of("data=idc", f"experiment={experiment}", "debug=fast")


@pytest.mark.parametrize("group", ["optimizer", "scheduler", "split", "pretraining"])
@pytest.mark.parametrize("experiment", choices("experiment"))
def test_other_choices_take_the_place_of_an_experiments(experiment: str, group: str) -> None:
    one = "model.context.with_single=false"  # a second network needs pretraining=patches
    for name in choices(group):
        config = config_of(f"experiment={experiment}", f"{group}={name}", one)
        assert getattr(config, group) == getattr(config_of(f"{group}={name}"), group)


def test_each_key_in_conf_is_read_and_nothing_else_is() -> None:
    read: set[str] = set()
    for choice in ["seed=0", *CHOICES]:
        read |= flat(config_of(choice).model_dump(mode="json"))
    assert {key for key in read if key not in Config.model_fields} == {
        key for key in keys("train") if key not in Config.model_fields
    }


def test_no_schema_has_a_default() -> None:
    configs: list[CommandConfig] = [config_of()]
    for schema, needed in COMMANDS.items():
        configs.append(read_config(composed(*needed, command=schema.command), schema))
    for config in configs:
        for section in [config, *(getattr(config, name) for name in type(config).model_fields)]:
            fields = getattr(type(section), "model_fields", {})
            assert all(field.is_required() for field in fields.values()), section


@pytest.mark.parametrize("schema", COMMANDS, ids=lambda schema: schema.command)
def test_each_command_reads_its_keys_and_no_others(schema: type[CommandConfig]) -> None:
    command = schema.command
    read: set[str] = set()
    choices_of = [f"{group}={choice}" for group in groups_of(command) for choice in choices(group)]
    for choice in ["hydra.job.name=a", *choices_of]:
        config = read_config(composed(*COMMANDS[schema], choice, command=command), schema)
        read |= flat(config.model_dump(mode="json"))
    assert read - set(schema.model_fields) == set(keys(command)) - set(schema.model_fields)


@pytest.mark.parametrize(
    ("schema", "overrides", "parts"),
    [
        (EvaluateConfig, [], ["run"]),
        (PredictConfig, ["run=a"], ["input"]),
        (EvaluateConfig, ["run=a", "results.threshold=max"], ["results.threshold=max"]),
        (PredictConfig, ["run=a", "input=b", "trainer.precision=8"], ["trainer.precision"]),
        (ExploreConfig, ["report.gallery=0"], ["report.gallery=0"]),
    ],
)
def test_what_other_commands_lack_or_refuse_is_named(
    schema: type[CommandConfig], overrides: list[str], parts: list[str]
) -> None:
    cfg = composed(*overrides, command=schema.command)
    with told("configuration: ", *parts):
        read_config(cfg, schema)


def test_keys_of_another_command_are_not_suggested() -> None:
    with pytest.raises(HydraException) as caught:
        composed("optimizer.lr=1", command="explore")
    assert describe(caught.value, "explore") == "unknown key optimizer.lr"
    with pytest.raises(HydraException) as caught:
        composed("reprot.gallery=1", command="explore")
    assert "did you mean report.gallery?" in describe(caught.value, "explore")


def test_names_of_patients_may_be_numbers() -> None:
    assert config_of("report.patients=[9126,a b]").report.patients == ["9126", "a b"]


def test_the_notebooks_experiment() -> None:
    config = config_of("experiment=notebook")
    assert config.split.name == "notebook"
    assert config.data.batch_size == 32
    assert config.data.drop_last
    assert config.data.edge_patches == "resize"
    assert config.model.backbone == "resnet18"
    assert config.model.weights == "imagenet"
    assert config.model.freeze_backbone
    assert config.model.head.model_dump() == {"hidden": [512, 256], "dropout": 0.5, "bias": 0.01}
    assert config.model.loss.class_weights == "balanced"
    assert config.optimizer.model_dump() == {
        "name": "sgd",
        "lr": 0.01,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.0,
    }
    assert config.scheduler.model_dump() == {
        "name": "cyclic",
        "base_lr": 1e-6,
        "max_lr": 0.006,
        "half_cycle": 30,
        "unit": "steps",
        "cycle_momentum": (0.8, 0.9),
    }
    assert config.trainer.epochs == 30


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        # unknown and missing keys
        ("+trainer.epoch=3", "unknown key trainer.epoch, did you mean trainer.epochs?"),
        ("+data.rot=x", "unknown key data.rot, did you mean data.root?"),
        ("+zzz=1", "unknown key zzz"),
        ("+optimizer.betas=[1,2]", "unknown key optimizer.betas, it belongs to optimizer=adamw"),
        ("~trainer.epochs", "trainer.epochs is missing"),
        ("~optimizer.lr", "optimizer.lr is missing"),
        ("~data.name", "data.name is missing"),
        ("trainer.epochs=???", "trainer.epochs is missing: idc-train "),
        ("seed=${sed}", "seed: Interpolation key 'sed' not found"),
        # values that don't exist
        ("optimizer.name=sdg", "optimizer.name=sdg should be one of 'sgd', 'adamw'"),
        ("data.edge_patches=padd", "data.edge_patches=padd should be 'pad', 'resize' or 'drop'"),
        ("trainer.accelerator=tpu", "trainer.accelerator=tpu should be 'auto', 'cpu' or 'gpu'"),
        ("trainer.precision=16", "trainer.precision=16 "),
        ("trainer.deterministic=wran", "trainer.deterministic=wran should be"),
        ("model.frozen_batchnorm=adopt", "model.frozen_batchnorm=adopt should be"),
        ("model.loss.class_weights=balancd", "model.loss.class_weights=balancd should be"),
        ("callbacks.checkpoint.monitor=dev/f2", "callbacks.checkpoint.monitor=dev/f2 should be"),
        ("callbacks.checkpoint.monitor=test/f1", "callbacks.checkpoint.monitor=test/f1 should be"),
        # wrong types
        ("optimizer.lr=abc", "optimizer.lr=abc should be a valid number"),
        ("optimizer.lr=true", "optimizer.lr=true should be a valid number"),
        ("optimizer.lr=null", "optimizer.lr=null should be a valid number"),
        ("trainer.epochs=1.5", "trainer.epochs=1.5 should be a valid integer"),
        ("trainer.epochs=true", "trainer.epochs=true should be a valid integer"),
        ("trainer.epochs=[1]", "trainer.epochs=[1] should be a valid integer"),
        ("+trainer.epochs.x=1", "trainer.epochs should be a valid integer"),
        ("data.drop_last=2", "data.drop_last=2 should be a valid boolean"),
        ("data.root=[a]", "data.root=['a'] is not a valid path"),
        ("model.backbone=18", "model.backbone=18 should be a valid string"),
        ("model.head=null", "model.head=null should be"),
        ("model.head.hidden=5", "model.head.hidden=5 should be a valid list"),
        ("model.head.hidden=[5,a]", "model.head.hidden.1=a should be a valid integer"),
        # out of range
        ("optimizer.lr=-1", "optimizer.lr=-1 should be greater than 0"),
        ("optimizer.lr=nan", "optimizer.lr=nan should be a finite number"),
        ("optimizer.lr=inf", "optimizer.lr=inf should be a finite number"),
        ("optimizer.momentum=1", "optimizer.momentum=1 should be less than 1"),
        ("optimizer.weight_decay=-0.1", "optimizer.weight_decay=-0.1 should be greater than"),
        ("model.head.bias=nan", "model.head.bias=nan should be a finite number"),
        ("model.head.dropout=1", "model.head.dropout=1 should be less than 1"),
        ("model.head.hidden=[5,0]", "model.head.hidden.1=0 should be greater than or equal to 1"),
        ("model.loss.class_weights=[1,-2]", "model.loss.class_weights.1=-2 should be greater"),
        ("model.loss.class_weights=[1,2,3]", "at most 2 items"),
        ("results.threshold=1", "results.threshold=1 should be"),
        ("results.threshold=nan", "results.threshold=nan should be"),
        ("seed=-1", "seed=-1 should be greater than or equal to 0"),
        ("data.batch_size=1", "data.batch_size=1 should be greater than or equal to 2"),
        ("trainer.epochs=-1", "trainer.epochs=-1 should be greater than or equal to 0"),
        # values that don't go together
        ("optimizer.momentum=0", "optimizer: nesterov=true needs a momentum above 0"),
        ("split.dev=0.9", "split: dev and test together must stay below 1"),
    ],
)
def test_a_wrong_value_is_told_with_its_key(override: str, parts: str) -> None:
    with told("configuration: ", parts):
        config_of(override)


@pytest.mark.parametrize(
    ("choice", "override", "part"),
    [
        (
            "model.context.name=grid",
            "data.crop=1",
            "configuration: model.context.name=grid has no neighbours to see with data.crop=1",
        ),
        ("data.crop=8", "data.batch_size=127", "data: batch_size=127 holds less than two crops"),
        ("data.margin=20", "data.window=40", "data: window=40 leaves nothing to judge within"),
        (
            "experiment=context",
            "model.context={name:grid,blocks:3}",
            "configuration: data.margin=4 is less than the 6 patches that model.context.blocks=3",
        ),
        (
            "model.test_time_augmentation=true",
            "experiment=notebook",
            "configuration: model.test_time_augmentation=true needs images",
        ),
        (
            "model.context.with_single=true",
            "pretraining=patches",
            "configuration: model.context.with_single=true needs a network that sees crops: add "
            "data.crop=4, or set it to false",
        ),
        (
            "model.context.with_single=true",
            "data.crop=8",
            "configuration: model.context.with_single=true needs a network of single patches: add "
            "pretraining=patches, or set it to false",
        ),
        (
            "model.weights=none",
            "trainer.epochs=0",
            "configuration: trainer.epochs=0 learns nothing: add pretraining=patches pretraining",
        ),
        ("scheduler=cyclic", "scheduler.base_lr=1", "scheduler: base_lr=1 is above max_lr=0.006"),
        ("scheduler=cyclic", "scheduler.unit=epoch", "scheduler.unit=epoch should be"),
        ("scheduler=onecycle", "scheduler.warmup=1", "scheduler.warmup=1 should be less than 1"),
        ("optimizer=adamw", "optimizer.betas=[0.9]", "optimizer.betas.1 is missing"),
        ("optimizer=adamw", "optimizer.betas=[0.9,2]", "optimizer.betas.1=2 should be less"),
        ("split=notebook", "split.held_out=0", "split.held_out=0 should be greater than 0"),
        (
            "callbacks=early_stopping",
            "callbacks.early_stopping.patience=0",
            "callbacks.early_stopping.patience=0 should be greater",
        ),
        (
            "optimizer=adamw",
            "+optimizer.momentum=0.5",
            "unknown key optimizer.momentum, it belongs to optimizer=notebook and optimizer=sgd",
        ),
    ],
)
def test_a_wrong_value_of_a_choice_is_told(choice: str, override: str, part: str) -> None:
    with told(part):
        config_of(choice, override)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with told("optimizer.lr=-1", "trainer.epochs=-1", "unknown key data.rot"):
        config_of("optimizer.lr=-1", "trainer.epochs=-1", "+data.rot=x")


JUDGED = ("pretraining=patches", "pretraining.run=outputs/single", "trainer.epochs=0")


def test_a_network_that_learns_nothing_has_no_range_test() -> None:
    assert config_of(*JUDGED).trainer.epochs == 0
    with told("configuration: callbacks=lr_range_test learns, which trainer.epochs=0 doesn't"):
        config_of(*JUDGED, "callbacks=lr_range_test")


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("trainer.epoch=3", "unknown key trainer.epoch, did you mean trainer.epochs?"),
        (
            "model.head.dropuot=0",
            "unknown key model.head.dropuot, did you mean model.head.dropout?",
        ),
        ("splt=notebook", "unknown key splt, did you mean split?"),
        ("sed=1", "unknown key sed, did you mean seed?"),
        ("foo.bar=1", "unknown key foo.bar"),
        ("optimizer.betas=[1,2]", "unknown key optimizer.betas, it belongs to optimizer=adamw"),
        ("data.root.x=1", "unknown key data.root.x, did you mean data.root?"),
    ],
)
def test_an_unknown_override_is_told(override: str, text: str) -> None:
    assert described(override) == text


def test_an_unknown_choice_is_told_with_all_that_there_are() -> None:
    text = described("split=notebok")
    assert text.startswith("unknown choice split=notebok, did you mean notebook?; there are ")
    assert text.endswith(", ".join(choices("split")))
    assert "did you mean" not in described("experiment=zzz")
    assert "there are fast, " in described("debug=fst")


def test_other_errors_of_hydra_are_one_line() -> None:
    for override in ("hydra/launcher=foo", "a b", "data.root=a=b", "split=[a"):
        text = described(override)
        assert text
        assert "\n" not in text
    assert "basic" in described("hydra/launcher=foo")


def test_an_error_without_a_text_is_told_by_its_cause() -> None:
    error = RuntimeError()
    error.__cause__ = ValueError("line one\nline two")
    assert describe(error, "train") == "line one line two"


def test_keys_and_choices_are_those_of_the_files() -> None:
    assert keys("train")["optimizer.nesterov"] == ["optimizer=notebook", "optimizer=sgd"]
    assert keys("train")["scheduler.warmup"] == ["scheduler=onecycle"]
    assert keys("train")["model.head.dropout"] == ["model=resnet18"]
    assert keys("train")["seed"] == []
    assert not any(key.startswith(("hydra", "defaults", "experiment")) for key in keys("train"))
    assert {"cyclic", "onecycle", "cosine", "none"} <= set(choices("scheduler"))
    assert choices("data") == ["demo", "idc"]
    assert choices("nothing") == []


def test_conf_lies_in_the_wheel_or_beside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "idc_lightning"
    package.mkdir()
    monkeypatch.setattr(idc_lightning.conf_folder, "__file__", str(package / "conf_folder.py"))
    assert conf_folder() == tmp_path / "conf"
    (package / "conf").mkdir()
    assert conf_folder() == package / "conf"


def test_the_digest_depends_on_what_can_change_a_result_and_on_nothing_else() -> None:
    digest = config_of().digest()
    assert re.fullmatch("[0-9a-f]{64}", digest)
    for same in ("data=demo", "callbacks.progress=none", "cache=elsewhere", "logger=none"):
        assert config_of(same).digest() == digest
    others = ("seed=1", "model.head.bias=0", "data.sample=9", "data.batch_size=64")
    assert len({config_of(other).digest() for other in others} | {digest}) == 5


def test_a_configuration_never_changes() -> None:
    config = config_of()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.model.head.dropout = 0.1  # type: ignore[misc]


def test_plain_values_give_the_section_back() -> None:
    config = config_of("optimizer=adamw", "callbacks=early_stopping")
    again = read_config(OmegaConf.create(config.model_dump(mode="json")), Config)
    assert again == config
    assert parse(ModelConfig, config.model, "model") is config.model


def test_a_section_is_told_with_its_place() -> None:
    values = config_of().model.model_dump(mode="json")
    values["head"]["dropout"] = 2
    del values["backbone"]
    with told("model.backbone is missing", "model.head.dropout=2 should be less than 1"):
        parse(ModelConfig, values, "model")


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDC_CACHE", "/somewhere/else")
    assert config_of().cache == Path("/somewhere/else")
    monkeypatch.delenv("IDC_CACHE")
    assert config_of().cache.expanduser() == Path.home() / ".cache" / "idc_lightning"


FROZEN = ("model.freeze_backbone=true", "data.augment.stain_jitter=0")


@pytest.mark.parametrize(
    ("overrides", "typed", "idle"),
    [
        ([], "data.margin", "data.margin has no effect on single patches: add data.crop=8"),
        (["data.crop=8"], "data.margin", None),
        (["data.crop=8"], "data.eval_batch_size", "give data.window"),
        (["experiment=context"], "data.eval_batch_size", None),
        ([], "model.context.bandwidth", "add model.context.name=smooth"),
        (["model.context.name=smooth"], "model.context.bandwidth", None),
        (["model.context.name=smooth"], "model.context.width", "add model.context.name=grid"),
        (["experiment=context"], "pretraining.epochs", None),
        ([*JUDGED], "optimizer.lr", "optimizer.lr has no effect, since trainer.epochs=0"),
        ([*JUDGED], "data.augment.turns", "since trainer.epochs=0 learns nothing"),
        (["data=demo", "data.root=x"], "data.patients", "data.patients has no effect, since data."),
        (["data=demo"], "data.patients", None),
        ([], "model.frozen_batchnorm", "has no effect: add model.freeze_backbone=true"),
        (["model.freeze_backbone=true"], "model.frozen_batchnorm", None),
        (["model.head.hidden=[]"], "model.head.dropout", "model.head.hidden=[] has no layers"),
        (["scheduler=notebook"], "optimizer.momentum", "scheduler.cycle_momentum sets it: add"),
        (["scheduler=cyclic"], "optimizer.momentum", None),
        ([*JUDGED], "scheduler", "scheduler has no effect, since trainer.epochs=0"),
        ([*JUDGED], "model.frozen_batchnorm", "model.frozen_batchnorm has no effect, since"),
        ([*JUDGED], "model.test_time_augmentation", None),
        (["experiment=context"], "model.weights", None),
        (["experiment=context", "pretraining.run=a"], "pretraining.epochs", "run=a is taken"),
        (["experiment=context", "pretraining.run=a"], "model.weights", "run=a is taken"),
        ([], "scheduler.max_lr", None),
        ([], "optimizer.lr", "scheduler=onecycle sets the rate"),
        (["scheduler=cosine"], "optimizer.lr", None),
        (["scheduler=cosine", "callbacks=lr_range_test"], "optimizer.lr", "the range test"),
        (["scheduler=cyclic", "callbacks=lr_range_test"], "scheduler.base_lr", "the range test"),
        (
            ["callbacks=lr_range_test", "callbacks.lr_range_test.apply=false"],
            "scheduler.max_lr",
            None,
        ),
        ([], "results.sensitivity", "results.threshold=max_f1: add results.threshold=sensitivity"),
        (["results.threshold=sensitivity"], "results.sensitivity", None),
        (["data.features=off"], "data.features", "add model.freeze_backbone=true"),
        (["data.features=off", "model.freeze_backbone=true"], "data.features", None),
        (["data.features=auto", *FROZEN], "data.features", None),
        (["data.device_resident=on"], "data.device_resident", None),
        (["data.device_resident=on", *FROZEN], "data.device_resident", "add data.features=off"),
        (["data.device_resident=on", *FROZEN, "data.features=off"], "data.device_resident", None),
        (
            ["data.device_resident=on", *FROZEN, "data.augment.brightness=0.1"],
            "data.device_resident",
            None,
        ),
    ],
)
def test_a_value_that_nothing_uses_is_named(
    overrides: list[str], typed: str, idle: str | None
) -> None:
    found = config_of(*overrides).idle({typed, "seed"})
    assert found is None if idle is None else found is not None and idle in found


@pytest.mark.parametrize(
    ("typed", "refused"),
    [
        ("data.root=2024_01_15", "'data.root=\"2024_01_15\"'"),
        ("data.root=20240115", None),
        ("data.root=007", None),
        ('data.root="2024_01_15"', None),
        ("data.root=./2024_01_15", None),
        ("report.patients=[9126_1]", "report.patients=9126_1 is taken for the number 91261"),
        ("report.patients=[9126,1.10]", "report.patients=1.10 is taken for the number 1.1"),
        ("report.patients=[9126,007]", None),
        ("data.sample=20_000", None),
    ],
)
def test_a_name_that_reads_as_another_number_is_refused(typed: str, refused: str | None) -> None:
    config = config_of("data=idc", typed)
    if refused is None:
        refuse_misread(config, [typed])
    else:
        with told(refused):
            refuse_misread(config, [typed])
