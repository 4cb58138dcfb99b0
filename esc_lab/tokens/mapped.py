"""Token ids in files: of a large corpus only those are in memory that are in use."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence

import numpy as np

from esc_lab.tokens.encode import IntArray

log = logging.getLogger(__name__)


def map_ids(arrays: Sequence[IntArray]) -> list[IntArray]:
    """The same arrays as parts of a temporary file, which is mapped into memory and gone with the last of them.

    Where no file can be written they are returned as they are.
    """
    ends = np.cumsum([len(ids) for ids in arrays])
    try:
        with tempfile.TemporaryFile() as file:
            for ids in arrays:
                file.write(ids.astype(np.int64).tobytes())
            file.flush()
            # Copied when written to, so that tensors can be made of it; nobody writes.
            mapped = np.asarray(np.memmap(file, np.int64, "c", shape=(int(ends[-1]),)))
    except (OSError, ValueError, IndexError) as error:  # no room, or nothing to write
        if len(arrays):
            log.info("token ids stay in memory: %s", error)
        return list(arrays)
    return np.split(mapped, ends[:-1])
