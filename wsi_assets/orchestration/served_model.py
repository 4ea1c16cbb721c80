"""A trained model as MLflow stores, loads and serves it: ``best.pt`` and ``best.json``, read by this module.

No module is pickled: the weights are the file that training published, loaded as weights only, so the
registered model gives the same probabilities as :func:`wsi_assets.learning.load_model` and can run no code.
Loading it needs this package installed, and no Dagster.

    from mlflow import pyfunc
    detector = pyfunc.load_model("models:/wsi-level-4/latest")
    detector.predict(patches)  # uint8 (n, size, size, 3) RGB -> float32 (n, 2): normal, tumor
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

BATCH = 64


class ServedModel:
    """What MLflow calls: probabilities of pixels, in batches, so that memory stays bounded."""

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


def save(checkpoint: Path, folder: Path, patch_size: int, *, run_id: str, model_id: str) -> None:
    """Write the folder MLflow keeps of a model: ``best.pt``, how to load it, and its signature."""
    import numpy as np
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    # Unnamed: a named tensor would reach predict in a dictionary.
    pixels = TensorSpec(np.dtype(np.uint8), (-1, patch_size, patch_size, 3))
    probabilities = TensorSpec(np.dtype(np.float32), (-1, 2))
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as together:
        for file in (checkpoint, checkpoint.with_suffix(".json")):
            shutil.copyfile(file, Path(together) / file.name)
        # The signature is stated, not guessed from an example.
        warnings.filterwarnings("ignore", message=".*input example was not provided.*")
        pyfunc.save_model(
            str(folder),
            loader_module=__name__,
            data_path=together,
            mlflow_model=Model(run_id=run_id, model_id=model_id),
            signature=ModelSignature(Schema([pixels]), Schema([probabilities])),
            # Stated too: finding out would start another Python and ask an index.
            pip_requirements=[f"{name}=={version(name)}" for name in ("wsi-assets", "torch", "timm")],
        )


def _load_pyfunc(data_path: str) -> ServedModel:
    """MLflow's name for what loads a model; ``data_path`` is the folder of ``best.pt``."""
    return ServedModel(data_path)
