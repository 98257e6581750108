"""Preloaded by the Dask workers of the fault suite: the stand-in models, the traps, the cut store."""

from __future__ import annotations

from typing import Any

from tests.faults import cut_store, models, traps


def dask_setup(worker: Any) -> None:
    """Called by Dask in each worker process before it takes work."""
    models.register_all()
    cut_store.register()
    traps.install()
    # What a first call would import: a restarted worker should not cost a test its time.
    import cv2  # noqa: F401
    import zarr  # noqa: F401
    from skimage.measure import regionprops  # noqa: F401

    import pipeline.classification
    import pipeline.quality
    import pipeline.registration
    import pipeline.segmentation  # noqa: F401
