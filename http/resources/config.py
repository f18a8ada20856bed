"""Configuration: read, change, reset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import falcon

from retire_cluster.api.content import reading
from retire_cluster.api.main_node.link import MainNodeLink
from retire_cluster.api.resources.base import Resource, answer
from retire_cluster.schemas.errors import ValidationError


class ConfigResource(Resource):
    """Serve `/config` and `/config/reset`: the complete configuration.

    :param api_section: this facade's own settings, without secrets; the main node only knows what
        it was started with itself
    """

    def __init__(self, link: MainNodeLink, api_section: Mapping[str, Any]) -> None:
        self._link = link
        self._api_section = dict(api_section)

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer all sections."""
        answer(req, resp, self._with_own(self._link.data("config.get")))

    def on_post_reset(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Reset the settings that may be changed to their defaults."""
        reading.checked_body(req)
        data = self._link.data("config.reset")
        current = self._with_own(data["current_config"])
        answer(req, resp, {**data, "current_config": current}, message="Configuration reset")

    def _with_own(self, sections: Mapping[str, Any]) -> dict[str, Any]:
        return {**sections, "api": self._api_section}


class ConfigSectionResource(Resource):
    """Serve `/config/SECTION`: a section that may be changed."""

    def __init__(self, link: MainNodeLink, section: str) -> None:
        self._link = link
        self._section = section

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer the section's settings, flat."""
        answer(req, resp, self._link.data("config.get", {"section": self._section}))

    def on_put(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Change the settings that are given; the others stay."""
        values = reading.checked_body(req)
        if not values:
            raise ValidationError("", "the body names no setting to change")
        data = self._link.data("config.update", {"section": self._section, "values": values})
        answer(req, resp, data, message="Configuration updated")
