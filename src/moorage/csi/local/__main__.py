"""``python -m moorage.csi.local``: the driver by itself."""

from __future__ import annotations

import sys

from moorage.csi.local.program import main

if __name__ == "__main__":
    sys.exit(main())
