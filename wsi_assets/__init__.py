"""wsi_assets: from whole-slide images and tumor annotations to an evaluated tumor detector.

The packages, in the order the data flows: ``slides``, ``annotations``, ``index``, ``patches``, ``learning``,
``evaluation``. Each is plain Python; only ``orchestration`` knows Dagster and MLflow.
"""

__version__ = "0.1.0"
