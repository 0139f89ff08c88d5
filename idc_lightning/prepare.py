"""``idc-prepare``: index, check and pack a data set, say what is wrong with it; clean the cache."""

import shutil
from pathlib import Path

from idc_lightning.cli import run_command
from idc_lightning.config import PrepareConfig
from idc_lightning.data.features import FOLDER as FEATURES
from idc_lightning.data.health import find_problems, what_stops_training
from idc_lightning.data.index import read_index
from idc_lightning.data.pack import STORES, Stored, stored_packs
from idc_lightning.data.source import find_source
from idc_lightning.data.store import open_store
from idc_lightning.errors import IDCError
from idc_lightning.files import in_units, locked, partial_of, taken, write_text
from idc_lightning.results.summary import console, health_table


def prepare(config: PrepareConfig, folder: Path) -> None:
    """Check and pack a data set, or clean the cache.

    Files that can't be read and positions with both labels don't stop it; they are listed. Of a
    store that is there already the pixels of all patches are checked.

    Args:
        config: Which data, or that the cache is cleaned.
        folder: Where health.csv is written.

    Raises:
        IDCError: If there is no such data, or the cache can't be written.
    """
    out = console()
    if config.clean:
        out.print(clean(config.cache.expanduser()), highlight=False, markup=False, soft_wrap=True)
        return
    source = find_source(config.data, config.cache)
    index = read_index(source.root, on_conflict="drop")
    table = index.table.assign(split=None)
    store = open_store(index.root, table, cache=config.cache, on_broken="skip", check_all=True)
    findings = find_problems(index, store, source.notes)
    write_text(folder / "health.csv", findings.to_csv(index=False))
    out.print(health_table(findings))
    notes = [*source.notes, *index.notes(), *store.notes()]
    notes += what_stops_training(findings, config.data)
    for note in [*notes, *stores_lines(config.cache, store.folder)]:
        out.print(note, highlight=False, markup=False, soft_wrap=True)
    out.print(f"written to: {folder}", highlight=False, markup=False, soft_wrap=True)


def stores_lines(cache: Path, used: Path) -> list[str]:
    """Lines on the store of this data set, and on others that take up room.

    Args:
        cache: Where they lie.
        used: Folder of the store of this data set.
    """
    stores = stored_packs(cache)
    lines = [f"store: {_described(stored)}" for stored in stores if stored.folder == used]
    others = [f"also stored: {_described(stored)}" for stored in stores if stored.folder != used]
    features = taken(cache.expanduser() / FEATURES)
    if features:
        others.append(f"features of frozen backbones: {in_units(features)} in {cache / FEATURES}")
    if others:
        others.append("idc-prepare clean=true removes all stores and features")
    return lines + others


def _described(stored: Stored) -> str:
    size = in_units(stored.size)
    if stored.patches is None:
        return f"{size} in {stored.folder}, which is damaged"
    return f"{stored.patches:,} patches of {stored.root}, {size} in {stored.folder}"


def clean(cache: Path) -> str:
    """Remove all stores and features from a cache, also unfinished ones.

    One that another process is making is waited for.

    Returns:
        A line on what was removed.

    Raises:
        IDCError: If something can't be removed.
    """
    removed, size = 0, 0
    found = [path for name in (STORES, FEATURES) for path in (cache / name).glob("*/")]
    for whole in dict.fromkeys(map(_whole, found)):
        with locked(whole, waiting=f"waiting for another process that makes {whole}"):
            for path in (whole, partial_of(whole)):  # it may have become whole meanwhile
                if path.is_dir() and not path.is_symlink():
                    size += taken(path)
                    removed += 1
                    try:
                        shutil.rmtree(path)
                    except OSError as error:
                        reason = f"can't remove {error.filename}: {error.strerror}"
                        raise IDCError(reason) from error
    if not removed:
        return f"nothing to remove in {cache}"
    return f"removed {removed:,} stores and features from {cache}: {in_units(size)}"


def _whole(path: Path) -> Path:
    """What an unfinished folder becomes; another one itself."""
    whole = path.with_name(path.name.removeprefix(".").removesuffix(".partial"))
    return whole if path == partial_of(whole) else path


def main() -> None:
    """Entry point of the command."""
    run_command(prepare, PrepareConfig)


if __name__ == "__main__":
    main()
