"""Wire the REST facade: `create_app`, with the whole route table in view.

`assemble` makes the parts from settings; the commands and `wsgi.py` call it at their edge.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import falcon

from retire_cluster.api.admission import keys as api_keys
from retire_cluster.api.admission import middleware
from retire_cluster.api.admission.auth import Authorizer
from retire_cluster.api.admission.body_budget import TellSender
from retire_cluster.api.admission.local_users import LocalUsers
from retire_cluster.api.admission.middleware import AdmissionMiddleware
from retire_cluster.api.admission.parking import Parking
from retire_cluster.api.admission.peers import Hosts, Origins, Peers
from retire_cluster.api.admission.rate_limit import RequestLimiter
from retire_cluster.api.admission.result_charges import ResultCharges
from retire_cluster.api.admission.senders import sender_by
from retire_cluster.api.admission.sessions import Sessions
from retire_cluster.api.admission.shutdown import Shutdown
from retire_cluster.api.admission.strangers import StrangerLimits
from retire_cluster.api.admission.tickets import Tickets
from retire_cluster.api.content.submission import SubmissionReader
from retire_cluster.api.main_node.feed import EventFeed
from retire_cluster.api.main_node.link import AdminCaller, MainNodeLink
from retire_cluster.api.main_node.stats import HttpStats, Reporter
from retire_cluster.api.resources.cluster import (
    ClusterHealthResource,
    ClusterResource,
    HealthProbe,
    HealthResource,
)
from retire_cluster.api.resources.config import ConfigResource, ConfigSectionResource
from retire_cluster.api.resources.devices import DeviceListResource, DeviceResource
from retire_cluster.api.resources.events import EventsResource, EventTicketResource
from retire_cluster.api.resources.join import JoinTokensResource
from retire_cluster.api.resources.meta import (
    DocsResource,
    IndexResource,
    OpenApiResource,
    RootResource,
)
from retire_cluster.api.resources.prometheus import PrometheusResource
from retire_cluster.api.resources.stream import StreamResource
from retire_cluster.api.resources.tasks import TaskListResource, TaskResource
from retire_cluster.api.resources.ui import DashboardFilesResource, SessionResource
from retire_cluster.broker.client import AdminClient
from retire_cluster.conf.curve import ClientKeys, KeyFileError
from retire_cluster.conf.machine.addresses import local_names, own_name
from retire_cluster.conf.neighbours import tooling_keys
from retire_cluster.conf.settings import Settings, public_view
from retire_cluster.conf.spec import SettingsError
from retire_cluster.schemas.errors import ClusterError
from retire_cluster.schemas.rest.endpoints import API
from retire_cluster.schemas.rest.openapi import openapi_document


@dataclass(frozen=True)
class Facade:
    """A facade, and the parts that its server needs to start and stop it."""

    app: falcon.App[falcon.Request, falcon.Response]
    link: MainNodeLink
    authorizer: Authorizer
    feed: EventFeed
    reporter: Reporter
    shutdown: Shutdown
    #: Tells the server whose body comes in.
    sender: TellSender

    def close(self) -> None:
        """End the background threads and the connections to the main node."""
        ended = [self.feed.stop(), self.reporter.stop()]
        # A thread that still waits on its socket owns it until the process ends.
        if all(ended):
            self.link.close()


def product_version() -> str:
    """Return the installed version; `unknown` when run from a folder that is not installed."""
    try:
        return version("retire-cluster")
    except PackageNotFoundError:
        return "unknown"


def create_app(
    client: AdminCaller,
    settings: Settings,
    *,
    keys: api_keys.ApiKeyRing | None = None,
    key_file: Path | None = None,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
) -> Facade:
    """Make the facade of the main node that `client` calls.

    :param settings: `settings.api` counts; authentication is on when it says so or when there are
        keys
    :param keys: accepted keys beside those in `settings.api.keys`
    :param key_file: file of further ones, which may change while this runs
    :param clock: epoch seconds
    :param monotonic: seconds, for deadlines
    """
    api = settings.api
    ring = api_keys.ApiKeyRing(
        [*map(api_keys.key_of, api.keys), *(keys.keys if keys is not None else ())], key_file
    )
    link = MainNodeLink(client, monotonic)
    sessions = Sessions(link, clock, monotonic)
    authorizer = Authorizer(
        ring,
        required=api.auth or bool(ring),
        reads=api.auth_reads,
        sessions=sessions,
        local_users=None if api.local_users == "all" else LocalUsers(),
        monotonic=monotonic,
        clock=clock,
    )
    peers = _peers(settings)
    origins = Origins(api.cors_origins, enabled=api.cors)
    stats = HttpStats()
    reporter = Reporter(link, stats, key_uses=authorizer.take_uses)
    shutdown = Shutdown()
    tickets = Tickets(clock)
    limiter = RequestLimiter(
        link,
        enabled=api.rate_limit,
        per_minute=api.rate_limit_per_minute,
        per_hour=api.rate_limit_per_hour,
        burst=api.rate_limit_burst,
    )
    admission = AdmissionMiddleware(
        authorizer=authorizer,
        peers=peers,
        origins=origins,
        # With keys a stranger's page gains nothing by being taken for ours: it has none.
        hosts=(
            Hosts(api.allowed_hosts, lambda: local_names(own_name(), settings.server.public_host))
            if api.allowed_hosts or not authorizer.required
            else None
        ),
        limiter=limiter,
        stats=stats,
        reporter=reporter,
        clock=clock,
    )
    app: falcon.App[falcon.Request, falcon.Response] = falcon.App(middleware=[admission])
    app.req_options.strip_url_path_trailing_slash = True
    app.add_error_handler(Exception, middleware.on_exception)
    app.add_error_handler(falcon.HTTPError, middleware.on_http_error)
    app.add_error_handler(ClusterError, middleware.on_cluster_error)

    document = openapi_document(
        product_version(), auth_required=authorizer.required, auth_reads=authorizer.reads
    )
    features = {
        "auth_required": authorizer.required,
        "rate_limiting": api.rate_limit,
        "cors": origins.enabled,
        "events": True,
        "websocket": True,
        "batch_submission": True,
        "prometheus_metrics": True,
    }
    probe = HealthProbe(link, shutdown)
    index = IndexResource(link, features)
    whole = ClusterResource(link, auth_required=authorizer.required)
    devices, device = DeviceListResource(link), DeviceResource(link)
    parking = Parking(
        shutdown,
        threads=api.threads,
        still_valid=authorizer.still_valid,
        known=lambda identity: identity.key is not None or authorizer.is_owner(identity),
        reserved=authorizer.required,
        monotonic=monotonic,
    )
    charges = ResultCharges(limiter)
    bounds = StrangerLimits(api.stranger_tasks, api.stranger_seconds)
    tasks = TaskListResource(link, authorizer, SubmissionReader(), parking, charges, bounds)
    task = TaskResource(link, authorizer, parking, charges)
    config = ConfigResource(link, public_view(api))

    route = app.add_route
    route("/", RootResource(index, authorizer))
    route("/health", HealthResource(probe))
    route("/api/health", HealthResource(probe))
    route("/metrics", PrometheusResource(link, stats))
    route(API, index)
    route(f"{API}/openapi.json", OpenApiResource(document))
    route(f"{API}/docs", DocsResource(document))
    route(f"{API}/cluster/status", whole, suffix="status")
    route(f"{API}/cluster/health", ClusterHealthResource(probe))
    route(f"{API}/cluster/metrics", whole, suffix="metrics")
    route(f"{API}/cluster/config", whole, suffix="config")
    route(f"{API}/devices", devices)
    route(f"{API}/devices/summary", devices, suffix="summary")
    route(f"{API}/devices/{{device_id}}", device)
    route(f"{API}/devices/{{device_id}}/status", device, suffix="status")
    route(f"{API}/devices/{{device_id}}/ping", device, suffix="ping")
    route(f"{API}/devices/{{device_id}}/drain", device, suffix="drain")
    route(f"{API}/devices/{{device_id}}/resume", device, suffix="resume")
    route(f"{API}/join-tokens", JoinTokensResource(link, settings))
    route(f"{API}/tasks", tasks)
    route(f"{API}/tasks/batch", tasks, suffix="batch")
    route(f"{API}/tasks/results", tasks, suffix="results")
    route(f"{API}/tasks/cancel", tasks, suffix="cancel")
    route(f"{API}/tasks/statistics", tasks, suffix="statistics")
    route(f"{API}/tasks/types", tasks, suffix="types")
    route(f"{API}/tasks/{{task_id}}", task)
    route(f"{API}/tasks/{{task_id}}/status", task, suffix="status")
    route(f"{API}/tasks/{{task_id}}/result", task, suffix="result")
    route(f"{API}/tasks/{{task_id}}/explanation", task, suffix="explanation")
    route(f"{API}/tasks/{{task_id}}/cancel", task, suffix="cancel")
    route(f"{API}/tasks/{{task_id}}/retry", task, suffix="retry")
    route(f"{API}/events", EventsResource(link, parking))
    route(f"{API}/events/ticket", EventTicketResource(tickets))
    route(f"{API}/config", config)
    route(f"{API}/config/server", ConfigSectionResource(link, "server"))
    route(f"{API}/config/heartbeat", ConfigSectionResource(link, "heartbeat"))
    route(f"{API}/config/reset", config, suffix="reset")
    pages = DashboardFilesResource()
    session = SessionResource(authorizer, sessions, product_version())
    route("/ui", pages)
    route("/ui/session", session)
    route("/ui/login", session, suffix="login")
    route("/ui/logout", session, suffix="logout")
    route("/ui/{name}", pages)
    feed = EventFeed(link)
    route("/ws", StreamResource(feed, authorizer, origins, tickets))
    return Facade(app, link, authorizer, feed, reporter, shutdown, sender_by(authorizer, peers))


def _peers(settings: Settings) -> Peers:
    try:
        return Peers(settings.api.trusted_proxies)
    except ValueError as error:
        source = settings.source_of("api.trusted_proxies")
        raise SettingsError("api.trusted_proxies", str(error), source) from None


def assemble(settings: Settings) -> Facade:
    """Make the facade that `settings` describe: dial the main node, read the key file.

    Raises `SettingsError` or `keys.ApiKeyFileError`.
    """
    api = settings.api

    def keys() -> ClientKeys | None:
        return tooling_keys(
            settings.data_dir, api.cluster_key_file, api.cluster_host, api.cluster_port
        )

    try:
        keys()
    except KeyFileError as error:
        source = settings.source_of("api.cluster_key_file")
        raise SettingsError("api.cluster_key_file", str(error), source) from None
    key_file = settings.data_dir / api_keys.FILE_NAME
    api_keys.read_keys(key_file)  # one that cannot be used stops the start
    client = AdminClient(
        api.cluster_host,
        api.cluster_port,
        timeout_seconds=api.cluster_timeout_seconds,
        keys=keys,
    )
    return create_app(client, settings, key_file=key_file)
