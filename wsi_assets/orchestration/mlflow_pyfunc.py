"""A trained model as an MLflow pyfunc model, which consists of ``best.pt``, ``best.json`` and this loader.

The weights are loaded without unpickling code, and give the same probabilities as
:func:`wsi_assets.learning.load_model`. Loading needs this package, but not Dagster.

    from mlflow import pyfunc
    detector = pyfunc.load_model("models:/wsi-level-4/latest")
    detector.predict(patches)  # uint8 (n, size, size, 3) RGB -> float32 (n, 2): normal, tumor
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

BATCH = 64


class ServedModel:
    """The object that MLflow loads and serves; predicts in batches to limit memory."""

    def __init__(self, checkpoint: str | Path):
        from wsi_assets.learning import load_model

        loaded = load_model(checkpoint)
        self._classifier = loaded.classifier().eval()
        self.patch_size = loaded.patch_size

    def predict(self, patches: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Probabilities (n, 2) of (normal, tumor) from RGB patches (n, size, size, 3), uint8."""
        import numpy as np
        import torch

        patches = np.ascontiguousarray(patches, dtype=np.uint8)
        with torch.inference_mode():
            parts = [
                self._classifier(torch.from_numpy(patches[start : start + BATCH])).numpy()
                for start in range(0, len(patches), BATCH)
            ]
        return np.concatenate(parts) if parts else np.empty((0, 2), dtype=np.float32)


def log_model(mlflow: Any, checkpoints: Path, name: str, patch_size: int, description: str) -> str:
    """Log ``best.pt`` and ``best.json`` to the active run and register them as a new version of ``name``.

    The version gets the description and the alias ``current``.

    Args:
        checkpoints: folder of the two files.
        patch_size: side of a patch in pixels.

    Returns:
        id of the logged model.
    """
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    # The tensors have no name, because MLflow passes named tensors to `predict` as a dictionary.
    pixels = TensorSpec(np.dtype(np.uint8), (-1, patch_size, patch_size, 3))
    probabilities = TensorSpec(np.dtype(np.float32), (-1, 2))
    # Messages of the registration would disturb the progress bars.
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stderr(io.StringIO()):
        model = Path(scratch) / "checkpoints"
        model.mkdir()
        for file in ("best.pt", "best.json"):
            shutil.copyfile(checkpoints / file, model / file)
        logged = mlflow.pyfunc.log_model(
            name=name,
            loader_module=__name__,
            data_path=str(model),
            signature=ModelSignature(Schema([pixels]), Schema([probabilities])),
            # To infer the requirements, MLflow would start another Python and query a package index.
            pip_requirements=[f"{one}=={version(one)}" for one in ("wsi-assets", "torch", "timm")],
            registered_model_name=name,
            await_registration_for=0,
        )
    client, number = mlflow.MlflowClient(), logged.registered_model_version
    client.update_model_version(name, number, description)
    client.set_registered_model_alias(name, "current", number)
    return logged.model_id


def _load_pyfunc(data_path: str) -> ServedModel:
    """Load a model; MLflow calls this function by name with the folder of ``best.pt``."""
    return ServedModel(data_path)
