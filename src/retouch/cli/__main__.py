"""`python -m retouch.cli` is `retouch`."""

from __future__ import annotations

from retouch.cli.app import main

main()
