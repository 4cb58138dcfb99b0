"""A page and the pages that it links as one ZIP file, whose links work wherever it is unpacked."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from esc_lab.artifacts import write_atomic

FOLDER = "pages"  # in the file: what is linked
WHEN = (1980, 1, 1, 0, 0, 0)  # of every file: equal pages make equal bundles


def write_bundle(page: str, path: Path, addresses: Iterable[str], target: Path) -> None:
    """Write the page and what it links; a link to what is not there stays as it is.

    Args:
        page: HTML. Addresses in it stand between double quotation marks.
        path: where the page lies; addresses are relative to its directory.
        addresses: of the linked pages, as `link` makes them.

    Raises:
        UserError, OSError: the file cannot be written, or a linked page cannot be read.
    """
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:

        def add(name: str, content: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(name, WHEN), content, zipfile.ZIP_DEFLATED)

        for number, address in enumerate(dict.fromkeys(addresses), start=1):
            linked = path.parent / unquote(address)
            if linked.is_file():
                inside = f"{FOLDER}/{number}_{linked.name}"
                add(inside, linked.read_bytes())
                page = page.replace(f'"{address}"', f'"{inside}"')
        add(path.name, page.encode())
    write_atomic(target, packed.getvalue())
