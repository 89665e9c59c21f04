"""What works on this machine."""

from __future__ import annotations

ORDER = 95


def run() -> int:
    """Say what works on this machine, and the one line that mends what does not."""
    from featuresplat.doctor import main as examine

    return examine()
