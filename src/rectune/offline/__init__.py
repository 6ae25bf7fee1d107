"""Offline methods: a model learns from its own answers, which a verifier has judged, in one resumable run.

`offline` in `run.py` goes through the stages, `settings.py` has what can be set, `record.py` what makes it resumable.
`from rectune.offline import offline` loads torch when the name is used, so that the command line's help is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rectune.offline.settings import OfflineConfig

if TYPE_CHECKING:
    from rectune.offline.run import OfflineResult, offline

__all__ = ["OfflineConfig", "OfflineResult", "offline"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'rectune.offline' has no attribute '{name}'")
    from rectune.offline import run

    return getattr(run, name)
