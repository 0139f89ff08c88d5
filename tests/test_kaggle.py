import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers_model import config_of, write_tissue

from idc_lightning.data.datamodule import IDCDataModule
from idc_lightning.data.kaggle import DATA_SET, download
from idc_lightning.errors import IDCError


def test_data_root_kaggle_takes_what_kagglehub_downloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tissue(tmp_path)
    asked: list[str] = []

    def dataset_download(name: str) -> str:
        asked.append(name)
        return str(tmp_path / "tissue")

    fake = SimpleNamespace(dataset_download=dataset_download)
    monkeypatch.setitem(sys.modules, "kagglehub", fake)
    config = config_of("data=idc", "data.root=kaggle")
    data = IDCDataModule(config.data, config.split, seed=0, cache=tmp_path)
    assert data.root() == tmp_path / "tissue"
    assert asked == [DATA_SET]


def test_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def dataset_download(name: str) -> str:
        raise ConnectionError("no route to host\nat length")

    fake = SimpleNamespace(dataset_download=dataset_download)
    monkeypatch.setitem(sys.modules, "kagglehub", fake)
    with pytest.raises(IDCError, match=r"^can't download .* \(no route to host\): .*data\.root.*$"):
        download()


def test_without_kagglehub_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(IDCError, match="pip install kagglehub"):
        download()
