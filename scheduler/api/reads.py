"""The routes that change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, Response

from scheduler.api.session_files import LOG_LIMIT, Piece
from scheduler.api.views import MOST_ROWS, Views
from scheduler.api.writes import named

States = Literal["queued", "held", "starting", "running", "stopping", "ended", "all"]
AppealState = Literal["open", "granted", "denied"]
Limit = Annotated[int, Query(ge=1, le=MOST_ROWS)]
Seconds = Annotated[int, Query(ge=0, le=10**10)]
Word = Annotated[str, Query(max_length=64)]
WEEK_S = 7 * 24 * 3600
ALL = ("queued", "held", "starting", "running", "stopping", "ended")

SIZE_HEADER, OFFSET_HEADER = "FairTier-Log-Size", "FairTier-Log-Offset"


class Reads:
    """Routes that ask the views."""

    def __init__(self, views: Views, more_status: Callable[[], dict[str, Any]]) -> None:
        self._views = views
        self._more_status = more_status

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v1")
        for path, handler in (
            ("/status", self.status),
            ("/queue", self.queue),
            ("/sessions", self.sessions),
            ("/sessions/{session}", self.session),
            ("/sessions/{session}/why", self.why),
            ("/sessions/{session}/log", self.log),
            ("/shares", self.shares),
            ("/usage", self.usage),
            ("/users", self.users),
            ("/hosts", self.hosts),
            ("/hosts/{host}", self.host),
            ("/calendar", self.calendar),
            ("/history", self.history),
            ("/tasks", self.tasks),
            ("/policy", self.policy),
            ("/policy/versions", self.versions),
            ("/appeals", self.appeals),
        ):
            router.add_api_route(path, handler, methods=["GET"], response_model=None)
        return router

    async def status(self) -> JSONResponse:
        """The instance on one page."""
        return _json((await self._views.ask(self._views.status)) | self._more_status())

    async def queue(self) -> JSONResponse:
        """Sessions that wait, in order."""
        return _json({"sessions": await self._views.ask(self._views.queue)})

    async def sessions(
        self,
        state: Annotated[list[States] | None, Query()] = None,
        user: Word | None = None,
        limit: Limit = 1000,
    ) -> JSONResponse:
        """Sessions in these states (`all` for every one); without, those that have not ended."""
        wanted = ALL if "all" in (state or ()) else tuple(state or ())
        return _json({"sessions": await self._views.ask(self._views.sessions, wanted, user, limit)})

    async def session(self, session: str) -> JSONResponse:
        """One session."""
        return _json(await self._views.ask(self._views.session, named(session, "session")))

    async def why(self, session: str) -> JSONResponse:
        """Why a session is where it is."""
        return _json(await self._views.ask(self._views.why, named(session, "session")))

    async def log(
        self,
        session: str,
        offset: Annotated[int, Query(ge=-(1 << 53), le=1 << 53)] = 0,
        limit: Annotated[int, Query(ge=1, le=LOG_LIMIT)] = LOG_LIMIT,
    ) -> Response:
        """Bytes of a session's output; headers say where they begin and how long the log is."""
        piece: Piece = await self._views.ask(self._views.log, named(session, "session"), offset, limit)
        headers = {OFFSET_HEADER: str(piece.offset), SIZE_HEADER: str(piece.size), "X-Content-Type-Options": "nosniff"}
        return Response(piece.content, media_type="application/octet-stream", headers=headers)

    async def shares(self) -> JSONResponse:
        """Every user's account and place."""
        return _json({"users": await self._views.ask(self._views.shares)})

    async def usage(self, user: Word | None = None, since_s: Seconds = WEEK_S) -> JSONResponse:
        """GPU-hours by user."""
        return _json(await self._views.ask(self._views.usage, user, since_s))

    async def users(self) -> JSONResponse:
        """Every user's record."""
        return _json({"users": await self._views.ask(self._views.users)})

    async def hosts(self) -> JSONResponse:
        """Every host."""
        return _json({"hosts": await self._views.ask(self._views.hosts)})

    async def host(self, host: str) -> JSONResponse:
        """One host."""
        return _json(await self._views.ask(self._views.host, named(host, "host")))

    async def calendar(self, everything: Annotated[bool, Query(alias="all")] = False) -> JSONResponse:
        """What is agreed for certain times; `all`: also what is over or was removed."""
        return _json({"entries": await self._views.ask(self._views.calendar, everything)})

    async def history(
        self,
        session: Word | None = None,
        user: Word | None = None,
        since_s: Seconds | None = None,
        limit: Limit = 1000,
    ) -> JSONResponse:
        """Decisions, oldest first; with a limit the newest."""
        return _json({"decisions": await self._views.ask(self._views.history, session, user, since_s, limit)})

    async def tasks(self) -> JSONResponse:
        """Background work."""
        return _json({"tasks": await self._views.ask(self._views.tasks)})

    async def policy(self) -> JSONResponse:
        """The policy in force, and what it counts with now."""
        return _json(await self._views.ask(self._views.policy))

    async def versions(self) -> JSONResponse:
        """Every policy that is or was in force, oldest first."""
        return _json({"versions": await self._views.ask(self._views.versions)})

    async def appeals(self, state: AppealState | None = None, user: Word | None = None) -> JSONResponse:
        """Appeals, oldest first."""
        states = () if state is None else (state,)
        return _json({"appeals": await self._views.ask(self._views.appeals, states, user)})


def _json(document: dict[str, Any]) -> JSONResponse:
    return JSONResponse({"schema": 1, **document})
