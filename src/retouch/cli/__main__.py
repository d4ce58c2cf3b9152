"""`python -m retouch.cli` runs `retouch`."""

from __future__ import annotations

from retouch.cli.app import main

main()
