"""A checkpoint folder as one zip file, to carry home."""

from __future__ import annotations

import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from fundamentallm.checkpoint import save_checkpoint
from fundamentallm.config import Config
from fundamentallm.data.tokenizers import BaseTokenizer
from fundamentallm.errors import CheckpointError
from fundamentallm.models import BaseModel
from fundamentallm.runs.files import remove_tree, rename_into_place, temporary_name

# A zip file says when its parts were last written; one moment for all of them makes equal models equal files.
_MOMENT = (1980, 1, 1, 0, 0, 0)


def save_zip(path: Path, model: BaseModel, tokenizer: BaseTokenizer, config: Config) -> None:
    """Write a zip file with the checkpoint's folder in it, complete or not at all.

    The folder is called like the file, and ``transformers`` loads it as it is once it is unpacked.

    Raises:
        CheckpointError: The file cannot be written.
    """
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory() as directory:
            folder = Path(directory) / path.stem
            save_checkpoint(folder, model, tokenizer, config)
            with zipfile.ZipFile(temporary, "w") as archive:
                for file in sorted(folder.iterdir()):
                    entry = zipfile.ZipInfo(f"{path.stem}/{file.name}", _MOMENT)
                    entry.external_attr = 0o644 << 16
                    # Weights hardly shrink, and trying takes longer than anything else here.
                    weights = file.suffix == ".safetensors"
                    entry.compress_type = zipfile.ZIP_STORED if weights else zipfile.ZIP_DEFLATED
                    archive.writestr(entry, file.read_bytes())
        rename_into_place(temporary, path)
    except OSError as error:
        raise CheckpointError(f"{path.name} could not be saved: {(error.strerror or str(error)).lower()}.") from error
    finally:
        remove_tree(temporary)
