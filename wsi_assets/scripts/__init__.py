"""The pipeline as four commands over plain files, without Dagster.

``python -m wsi_assets.scripts.build_index``, ``build_sampled_index``, ``save_patches`` and ``train`` use the
same functions as the assets. They also accept an index and a patch store that other programs wrote.
"""
