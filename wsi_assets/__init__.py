"""wsi_assets: from whole-slide images and tumor annotations to an evaluated tumor detector.

The packages, in the order the data flows: ``slides``, ``annotations``, ``index``, ``patches``, ``learning``,
``evaluation``. Only ``orchestration`` and the command line use Dagster and MLflow.
"""

__version__ = "0.1.0"
