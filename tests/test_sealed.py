"""results.json and the files that it vouches for."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers_model import told
from hypothesis import given, settings
from hypothesis import strategies as st

from idc_lightning.errors import IDCError
from idc_lightning.results.sealed import check_sealed, read_results, write_results

CONTENT: dict[str, Any] = {
    "dev": {"auroc": {"value": 0.9123456789, "low": None, "high": 1e-05}},
    "notes": ["ö is no ASCII"],
    "epochs": 8,
}


def test_results_are_plain_json_and_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    write_results(path, CONTENT)
    read = json.loads(path.read_text())
    assert list(read) == [*CONTENT, "files", "seal"]
    assert {key: read[key] for key in CONTENT} == CONTENT
    assert path.read_text().endswith("}\n")
    assert read_results(path) == {**CONTENT, "files": {}}


def test_what_json_does_not_know_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(ValueError, match="nan"):
        write_results(path, {"images_per_second": float("nan")})
    assert not list(tmp_path.iterdir())


def test_results_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    (tmp_path / "results.json").mkdir()
    with told("can't write", "results.json"):
        write_results(tmp_path / "results.json", {})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "results.json"
    write_results(path, CONTENT)
    return path


@settings(max_examples=300)
@given(data=st.data())
def test_no_changed_or_cut_byte_is_believed(written: Path, data: st.DataObject) -> None:
    whole = written.read_bytes()
    content = bytearray(whole)
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[place]
    path = written.with_name("changed.json")
    path.write_bytes(content)
    try:
        found = read_results(path)
    except IDCError as error:
        said = str(error)
    else:  # between the values
        said = f"{path} is the same" if found == {**CONTENT, "files": {}} else ""
    assert re.match(f"{re.escape(str(path))} (is damaged|was changed|is the same)", said)


@pytest.mark.parametrize("content", ["", "[]", "{}", '"text"', "3", "null", '{"seal": null}'])
def test_what_holds_no_results_is_told(tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with told(str(path)):
        read_results(path)
    with told("can't read"):
        read_results(tmp_path / "absent.json")


def test_files_of_a_run_are_as_they_were_when_it_ended(tmp_path: Path) -> None:
    names = ("splits.csv", "predictions/dev.csv", ".hydra/config.yaml")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    write_results(tmp_path / "results.json", CONTENT)
    results = read_results(tmp_path / "results.json")
    assert set(results["files"]) == set(names)
    for name in names:
        check_sealed(results, name, tmp_path / name)
        (tmp_path / name).write_text(f"{name}!")
        with told(f"{tmp_path / name} was changed after its run had ended: train again"):
            check_sealed(results, name, tmp_path / name)
        (tmp_path / name).unlink()
        with told(f"can't read {tmp_path / name}"):
            check_sealed(results, name, tmp_path / name)
    (tmp_path / "predictions" / "test.csv").write_text("later")
    with told("test.csv was changed"):
        check_sealed(results, "predictions/test.csv", tmp_path / "predictions" / "test.csv")
