"""Where the parts of a cluster listen when nobody names another port."""

from __future__ import annotations

from typing import Final

#: The main node's admin socket: tooling and the REST facade dial it.
ADMIN: Final = 8080
#: The REST facade.
API: Final = 8081
#: The main node's worker bus: devices dial it.
WORKER_BUS: Final = 8082
#: The main node's event feed.
EVENT_FEED: Final = 8083
#: The installer for new devices, served by `up`.
INSTALLER: Final = 8084
