"""The daemon's settings: a TOML file, the command line over it, and defaults below both.

Only `__main__` and `daemon` know them.
"""

from vmagentd.config.file import DEFAULT_FILE, load
from vmagentd.config.tables import Config, RetentionSettings, StopSettings

__all__ = ["DEFAULT_FILE", "Config", "RetentionSettings", "StopSettings", "load"]
