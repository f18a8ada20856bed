"""`retire_cluster.api.wsgi:app` for gunicorn and other WSGI servers.

The only module that builds anything when it is imported: from the environment and the TOML file
that `RETIRE_CLUSTER_CONFIG` names. Sockets and the background thread are made by the first request
of each process, so forking servers are safe.
"""

from __future__ import annotations

import sys

from retire_cluster.api.admission.keys import ApiKeyFileError
from retire_cluster.api.app import Facade, assemble
from retire_cluster.conf.loading import read_settings
from retire_cluster.conf.logs import configure
from retire_cluster.conf.spec import SettingsError


def _build() -> Facade:
    try:
        settings = read_settings({})
        configure(settings.logging, settings.api.keys)
        return assemble(settings)
    except (SettingsError, ApiKeyFileError) as error:
        print(f"retire-cluster-api: {error}", file=sys.stderr)
        raise SystemExit(2) from None


facade = _build()
app = facade.app
