"""A frozen backbone computes each view of a patch once; the head learns on what it gave.

The features go to the cache, under a key of all that they depend on, so that the epochs of a run
and the runs of a sweep compute them once.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from multiprocessing import current_process

import joblib
import numpy as np
import numpy.typing as npt
import torch
import torchvision
from torch import Tensor, nn

from idc_lightning.config import Config
from idc_lightning.data.augment import as_float
from idc_lightning.data.datamodule import IDCDataModule
from idc_lightning.data.features import FOLDER, FORMAT, FeatureCache, Features, stored_dtype
from idc_lightning.data.views import possible_views, viewed
from idc_lightning.errors import IDCError
from idc_lightning.files import in_units
from idc_lightning.models.network import PatchNetwork
from idc_lightning.progress import watched

VERSIONS = (torch.__version__, torchvision.__version__)
"""Of the packages that hold the backbones and compute them."""

BATCH = 512
"""Patches that are computed at once."""

BLOCK = 50
"""Steps of a head on features that are taken in one step of Lightning."""

CHUNK = 16
"""Batches between two writes to the cache."""


def features_note(config: Config) -> list[str]:
    """A line on a frozen backbone that is computed anew in each step, and why; else none."""
    if not config.model.freeze_backbone or config.learns_on_features:
        return []
    if config.data.features == "off":
        return ["the frozen backbone is computed anew in each step: data.features=off"]
    if config.data.crop > 1 and config.model.context.name != "grid":
        return [
            "the frozen backbone is computed anew in each step, since data.crop="
            f"{config.data.crop} gives a patch other features in each crop"
        ]
    return [
        "the frozen backbone is computed anew in each step, since data.augment.stain_jitter and "
        "brightness give no finite set of views: set both to 0 to compute it once"
    ]


def block_steps(config: Config, processes: int = 1) -> int:
    """Batches that training takes in one step of Lightning, whose own time would exceed theirs.

    1 takes them one by one: the whole net needs no blocks, a moving average of the weights has to
    see each step, and Lightning joins the gradients of several processes in each of its own.

    Args:
        config: Of the training.
        processes: That share it.
    """
    each = config.callbacks.ema_decay is not None or processes > 1
    if not config.learns_on_features or each:
        return 1
    return BLOCK


def compute_features(
    network: PatchNetwork,
    backbone: str,
    data: IDCDataModule,
    splits: Sequence[str],
    *,
    precision: str,
    compiled: bool,
    context: Callable[[], AbstractContextManager[None]],
) -> Features:
    """Compute what the cache lacks.

    Args:
        network: With the weights of its backbone, on its device.
        backbone: Its name.
        data: The patches.
        splits: Those that are needed: train in all views that its augmentation can ask for, others
            as they are.
        precision: Lightning's name of it.
        compiled: Whether the backbone is compiled, which rounds otherwise.
        context: Makes that in which the network computes, such as autocast.

    Returns:
        Features of all patches of these splits.

    Raises:
        IDCError: If features aren't finite, or can't be written.
    """
    store = data.store
    key = _key(network, backbone, precision, store.input_key, compiled=compiled)
    folder = data.cache.expanduser() / FOLDER / key
    with context(), torch.inference_mode():
        dtype = stored_dtype(folder) or _computed_dtype(network, data)
    cache = FeatureCache(
        folder,
        patches=len(store.packed),
        width=network.width,
        dtype=dtype,
    )
    wanted = _wanted(data, splits)
    if _lacking(cache, wanted, store.places):
        with cache.filling():
            lacking = _lacking(cache, wanted, store.places)
            if lacking:  # another process may have computed them meanwhile
                _announce(cache, lacking)
                with context(), torch.inference_mode(), _all_threads():
                    _fill(network, cache, data, lacking)
            # Within the lock, so that nobody cleans the cache before.
            return cache.open(sorted(wanted), store.places)
    return cache.open(sorted(wanted), store.places)


def _wanted(data: IDCDataModule, splits: Sequence[str]) -> dict[int, npt.NDArray[np.int64]]:
    """Rows of the table by the views that are needed of them."""
    rows: dict[int, list[npt.NDArray[np.int64]]] = {}
    for split in splits:
        for view in possible_views(data.data.augment) if split == "train" else [0]:
            rows.setdefault(view, []).append(data.rows(split))
    return {view: np.concatenate(parts) for view, parts in rows.items()}


def _lacking(
    cache: FeatureCache, wanted: dict[int, npt.NDArray[np.int64]], places: npt.NDArray[np.int64]
) -> dict[int, npt.NDArray[np.int64]]:
    """Rows of the store that have to be computed, by view."""
    missing = {view: cache.missing(view, places[rows]) for view, rows in wanted.items()}
    return {view: rows for view, rows in missing.items() if len(rows)}


def _computed_dtype(network: PatchNetwork, data: IDCDataModule) -> torch.dtype:
    """In what the backbone gives features, which in a mixed precision depends on its layers.

    On as many patches as are computed at once, for which a backbone may be compiled.
    """
    device = next(network.parameters()).device
    rows = np.arange(min(BATCH, len(data.store.packed)))
    with _evaluating(network):
        return network.pooled(_images(data, rows, 0, device)).dtype


@contextmanager
def _evaluating(network: PatchNetwork) -> Iterator[None]:
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


@contextmanager
def _all_threads() -> Iterator[None]:
    """Take the threads of the other jobs, too, which wait in a sweep that runs them in parallel."""
    threads = torch.get_num_threads()
    if current_process().name.startswith("LokyProcess"):
        torch.set_num_threads(joblib.cpu_count())
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _announce(cache: FeatureCache, lacking: dict[int, npt.NDArray[np.int64]]) -> None:
    count = sum(len(rows) for rows in lacking.values())
    cache.check_room(count)
    size = count * cache.shape[1] * cache.dtype.itemsize
    print(
        f"computing the frozen backbone once: {count:,} views of patches, {in_units(size)} in "
        f"{cache.folder}",
        flush=True,
    )


def _fill(
    network: PatchNetwork,
    cache: FeatureCache,
    data: IDCDataModule,
    lacking: dict[int, npt.NDArray[np.int64]],
) -> None:
    batches = [
        (view, rows[start : start + BATCH])
        for view, rows in lacking.items()
        for start in range(0, len(rows), BATCH)
    ]
    device = next(network.parameters()).device
    with _evaluating(network):
        for view, rows, found in _chunks(
            (view, rows, network.pooled(_images(data, rows, view, device))[:, :, 0, 0])
            for view, rows in watched(batches, "computing the frozen backbone")
        ):
            if not bool(torch.isfinite(found).all()):
                raise IDCError(
                    "features of the frozen backbone are not finite: model.weights can't be used, "
                    "or only in trainer.precision=32-true"
                )
            cache.write(view, rows, found)


def _images(
    data: IDCDataModule, places: npt.NDArray[np.int64], view: int, device: torch.device
) -> Tensor:
    """Images of a view, float [B, 3, 50, 50]."""
    pixels = torch.from_numpy(data.store.input_at(places)).to(device)
    turned = viewed(pixels, torch.full((len(places),), view, device=device))
    return as_float(turned.permute(0, 3, 1, 2))


def _chunks(
    computed: Iterator[tuple[int, npt.NDArray[np.int64], Tensor]],
) -> Iterator[tuple[int, npt.NDArray[np.int64], Tensor]]:
    """Join some batches of a view to one write."""
    while chunk := list(islice(computed, CHUNK)):
        for view in dict.fromkeys(view for view, _, _ in chunk):
            mine = [(rows, found) for of, rows, found in chunk if of == view]
            yield view, np.concatenate([rows for rows, _ in mine]), torch.cat([f for _, f in mine])


def _key(
    network: PatchNetwork, backbone: str, precision: str, pixels: str, *, compiled: bool
) -> str:
    """Name of the features: a hash of all that they depend on."""
    digest = hashlib.blake2b(digest_size=12)
    device = next(network.parameters()).device.type
    facts = (FORMAT, backbone, precision, compiled, device, pixels, *VERSIONS)
    digest.update(repr(facts).encode())
    for part in (network.normalize, network.backbone):
        _add_weights(digest, part)
    return digest.hexdigest()


def _add_weights(digest: hashlib.blake2b, part: nn.Module) -> None:
    for name, value in part.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            digest.update(name.encode())
            digest.update(value.detach().cpu().numpy().tobytes())
