"""The native rooms: what happens once per write, region or block. They know no operation and no peer."""

import os as _os

from pyrepl._core._guard import check_package as _check_package

_check_package(_os.path.dirname(_os.path.dirname(__file__)))
