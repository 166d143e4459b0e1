"""`moorage WORDS…` with a recording of all that it serves: ``MOORING_RECORD=FILE python watched_program.py WORDS…``."""

from __future__ import annotations

from recording import find_path, install

from moorage.__main__ import main

if __name__ == "__main__":
    if find_path():
        install(find_path())
    main()
