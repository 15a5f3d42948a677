"""Features of a store as they are read: a zarr array that gives the numbers that were written, or says what is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import zarr

from lvlm_interp.errors import OutputError
from lvlm_interp.probes.damage import damaged, gone, spoilt


class StoredArray(zarr.Array):  # generic in later releases only
    """Features on disk, `[row, site, dim]`, which are sliced as other arrays are.

    Every way of slicing raises OutputError where a file is damaged; or gone, for which zarr gives NaN: features never
    are that, nor infinite.
    """

    def get_basic_selection(self, *asked: Any, **options: Any) -> Any:
        return self._whole(super().get_basic_selection, *asked, **options)

    def get_orthogonal_selection(self, *asked: Any, **options: Any) -> Any:
        return self._whole(super().get_orthogonal_selection, *asked, **options)

    def get_mask_selection(self, *asked: Any, **options: Any) -> Any:
        return self._whole(super().get_mask_selection, *asked, **options)

    def get_coordinate_selection(self, *asked: Any, **options: Any) -> Any:
        return self._whole(super().get_coordinate_selection, *asked, **options)

    def get_block_selection(self, *asked: Any, **options: Any) -> Any:
        return self._whole(super().get_block_selection, *asked, **options)

    @property
    def folder(self) -> str:
        """The directory of the store."""
        store: Any = self.store
        return str(store.root)

    def _whole(self, read: Callable[..., Any], *asked: Any, **options: Any) -> Any:
        try:
            found = read(*asked, **options)
        except OSError as error:
            raise OutputError(f"could not read the features {self.path!r} of {self.folder}: {error}") from error
        except (ValueError, RuntimeError):
            self._need_whole()
            raise  # of what was asked for
        if not np.isfinite(found).all():
            held = damaged(self.folder, f"the features {self.path!r} hold infinity")
            raise gone(self.folder, self.path) if np.isnan(found).any() else held
        return found

    def _need_whole(self) -> None:
        """Raise OutputError where a file is damaged."""
        rows, step = self.shape[0], self.chunks[0]
        try:
            for start in range(0, rows, step):
                super().get_basic_selection(slice(start, start + step))
        except (ValueError, RuntimeError) as error:
            raise spoilt(self.folder, f"the features {self.path!r}", error) from error
