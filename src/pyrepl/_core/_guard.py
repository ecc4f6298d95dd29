"""Stops where another project's package of the same name was installed over this one.

PyPI's distribution ``pyrepl`` is a line editor that installs into the same folder, and pip does not notice. One look at
a file name is all that a sound installation pays.
"""

from __future__ import annotations

import os

FOREIGN = "unix_console.py"  # a module of the line editor; this package has none of that name
OURS = b"pyrepl-volume"  # stands in the docstring of this package's __init__.py


def check_package(folder: str) -> None:
    """Raises ImportError with the cure if the ``__init__.py`` in this folder is not ours."""
    if not os.path.exists(os.path.join(folder, FOREIGN)):
        return
    with open(os.path.join(folder, "__init__.py"), "rb") as file:
        if OURS in file.read(4096):
            return
    raise ImportError(
        f"the line editor 'pyrepl' from PyPI was installed over 'pyrepl-volume' in {folder}; "
        f"cure: pip uninstall pyrepl && pip install --force-reinstall pyrepl-volume"
    )
