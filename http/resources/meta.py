"""Describe the API: its index, its OpenAPI document, its documentation page, `/`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import falcon

from retire_cluster.api.admission.auth import Authorizer
from retire_cluster.api.admission.peers import prefix_of
from retire_cluster.api.content import envelope, pages
from retire_cluster.api.content.negotiation import names
from retire_cluster.api.main_node.link import MainNodeLink
from retire_cluster.api.resources.base import Resource, answer
from retire_cluster.schemas.rest.endpoints import ENDPOINTS

API_VERSION = "v1"


class IndexResource(Resource):
    """Serve `/api/v1`: what the API offers.

    :param features: feature name → whether this facade has it on
    """

    def __init__(self, link: MainNodeLink, features: Mapping[str, bool]) -> None:
        self._link = link
        self._features = dict(features)
        self._endpoints = [
            {"method": row.method, "path": row.path, "description": row.summary}
            for row in ENDPOINTS.values()
            if row.path != "/"
        ]

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer version, features and endpoints."""
        answer(
            req,
            resp,
            {
                "api_version": API_VERSION,
                "server_info": self._link.data("cluster.status")["server_info"],
                "features": self._features,
                "endpoints": self._endpoints,
            },
        )


class RootResource(Resource):
    """Serve `/`: the dashboard for a browser, the index for a program."""

    def __init__(self, index: IndexResource, authorizer: Authorizer) -> None:
        self._index = index
        self._authorizer = authorizer

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Redirect a client that asks for HTML to the dashboard, else answer as `/api/v1`."""
        resp.append_header("Vary", "Accept")
        if names(req.get_header("Accept", default=""), "text/html"):
            resp.status = falcon.HTTP_302
            # Relative, so that it also holds behind a proxy that adds a prefix.
            resp.set_header("Location", "ui/")
        else:
            self._authorizer.check_reading(req.context.identity)
            self._index.on_get(req, resp)


class OpenApiResource(Resource):
    """Serve `/api/v1/openapi.json`."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._text = envelope.dump(document)

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer the OpenAPI document."""
        resp.content_type = envelope.JSON
        prefix = prefix_of(req.env, req.context.identity.peer)
        if prefix:
            document = {**self._document, "servers": [{"url": prefix}]}
            resp.data = envelope.dump(document)
        else:
            resp.data = self._text


class DocsResource(Resource):
    """Serve `/api/v1/docs`."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._page = pages.docs_page(document)

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer the OpenAPI document as a page."""
        _html(resp, self._page)


def _html(resp: falcon.Response, text: str) -> None:
    resp.content_type = "text/html; charset=utf-8"
    resp.set_header("Content-Security-Policy", pages.POLICY)
    resp.set_header("Referrer-Policy", "no-referrer")
    resp.text = text
