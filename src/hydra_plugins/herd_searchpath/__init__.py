"""Puts the folder that holds ``sweeps/`` on Hydra's search path, so that ``+sweeps=isoflop_laptop`` finds its file."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from herd.config.loader import data_root


class HerdSearchPath(SearchPathPlugin):
    """Appends the folder above ``conf/`` and ``sweeps/``."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra once for each composition."""
        search_path.append("herd", f"file://{data_root()}")
