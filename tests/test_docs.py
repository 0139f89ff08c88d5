"""Commands in the documentation are commands that the project has."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import OmegaConf, open_dict

from idc_lightning.conf_folder import conf_folder, override
from idc_lightning.config import (
    CommandConfig,
    CompareConfig,
    Config,
    EvaluateConfig,
    ExploreConfig,
    PredictConfig,
    PrepareConfig,
    read_config,
    refuse_idle,
)

ROOT = Path(__file__).parents[1]

SCHEMAS: dict[str, type[CommandConfig]] = {
    f"idc-{schema.command}": schema
    for schema in (
        CompareConfig,
        Config,
        EvaluateConfig,
        ExploreConfig,
        PredictConfig,
        PrepareConfig,
    )
}

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

PLUGINS = {"submitit_local": "submitit", "slurm": "submitit", "ray": "ray", "ray_cluster": "ray"}


def commands(page: Path) -> list[str]:
    """What stands in blocks of code and between backticks, and is more than a name."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = "\n".join(re.findall(r"```\n(.*?)```", text, flags=re.DOTALL)).splitlines()
    inline = re.findall(r"`(idc-[^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    found = [" ".join(line.split()) for line in [*blocks, *inline]]
    return [line for line in found if re.match(r"idc-\w+ (?!--)", line)]


def typed(command: str) -> list[str]:
    """The words that Hydra reads, with one value each, and a name in place of what is left open."""
    command = command.replace("$DATA ", "")
    words = shlex.split(re.sub(r"<[^>]+>|\.\.\.", "x", command), comments=True)[1:]
    words = [word for word in words if not word.startswith(("-", "resume="))]
    if words and "=" not in words[0]:
        words[0] = override("folder", words[0])
    parsed = OverridesParser.create().parse_overrides(words)
    return [f"{each.get_key_element()}={_one_value(each)}" for each in parsed]


def _one_value(parsed: Override) -> str:
    values = parsed.value()
    if isinstance(values, IntervalSweep):
        return str(values.start)
    if parsed.is_sweep_override():
        return next(iter(parsed.sweep_string_iterator()))
    return str(parsed.get_value_element_as_str())


@pytest.mark.parametrize(
    ("page", "command"),
    [(page.name, command) for page in PAGES for command in commands(page)],
)
def test_a_documented_command_is_composed_and_every_value_used(page: str, command: str) -> None:
    schema = SCHEMAS[command.split()[0]]
    words = typed(command)
    for word in words:
        if word.startswith("hydra/launcher="):
            pytest.importorskip(PLUGINS.get(word.partition("=")[2], "joblib"))
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose(schema.command, overrides=words, return_hydra_config=True)
    with open_dict(cfg):
        del cfg["hydra"]
    for name in ("folder", "run", "input"):
        if name in cfg and OmegaConf.is_missing(cfg, name):
            cfg[name] = "x"
    refuse_idle(read_config(cfg, schema), [word for word in words if not word.endswith("=x")])
