"""The two applications: everything, for the unix socket; status and metrics, for TCP."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.middleware.trustedhost import TrustedHostMiddleware

from scheduler.api.problems import tell_problems
from scheduler.api.reads import Reads
from scheduler.api.writes import Writes

if TYPE_CHECKING:
    from scheduler.adapters.redis_gateway import Gateway
    from scheduler.api.metrics import Metrics
    from scheduler.api.views import Views

LOOPBACK_NAMES = ["127.0.0.1", "localhost"]


def full_app(
    gateway: Gateway, views: Views, metrics: Metrics, more_status: Callable[[], dict[str, Any]] = dict
) -> FastAPI:
    """Every route. For a socket that only those may open who may do everything.

    Args:
        more_status: members that the status has in addition.
    """
    app = _bare(views, metrics)
    app.include_router(Writes(gateway).router())
    app.include_router(Reads(views, more_status).router())
    return app


def open_app(views: Views, metrics: Metrics) -> FastAPI:
    """Status and metrics, without a token: for loopback only, and for those who name it so.

    A page in a browser that had its own name resolved to 127.0.0.1 is turned away.
    """
    app = _bare(views, metrics)
    app.add_api_route("/v1/status", Reads(views, dict).status, methods=["GET"], response_model=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK_NAMES)
    return app


def _bare(views: Views, metrics: Metrics) -> FastAPI:
    async def exposition() -> Response:
        return Response(await views.ask(metrics.text), media_type=metrics.media_type)

    app = FastAPI(title="FairTier", docs_url=None, redoc_url=None, openapi_url=None)
    tell_problems(app)
    app.add_api_route("/metrics", exposition, methods=["GET"], response_model=None)
    return app
