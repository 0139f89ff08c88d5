"""The public data set, downloaded from Kaggle by the optional package kagglehub."""

from pathlib import Path

from idc_lightning.errors import IDCError

DATA_SET = "paultimothymooney/breast-histopathology-images"


def download() -> Path:
    """Download the data set, or find it downloaded; kagglehub keeps it in its own cache.

    Returns:
        Folder of the patients' folders.

    Raises:
        IDCError: If kagglehub isn't installed or the download fails.
    """
    try:
        import kagglehub
    except ImportError as error:
        raise IDCError(
            "data.root=kaggle needs the package kagglehub: pip install kagglehub"
        ) from error
    try:
        return Path(kagglehub.dataset_download(DATA_SET))
    except Exception as error:  # kagglehub and the packages below it raise errors of many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise IDCError(
            f"can't download {DATA_SET} from Kaggle ({reason}): download it in a browser and give "
            "the .zip by data.root=<file>"
        ) from error
