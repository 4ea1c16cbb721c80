"""The pipeline as four commands over plain files, without Dagster.

``python -m wsi_assets.scripts.build_index``, ``build_sampled_index``, ``save_patches`` and ``train`` run the
functions that the assets run. They also take an index and a patch store that other programs wrote.
"""
