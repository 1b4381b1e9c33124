"""Who asks: the key in a header, or the cookie of the web page."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from starlette.requests import HTTPConnection

from kandinsky.serve.envelope import ApiError
from kandinsky.serve.keys import COOKIE, Keys, Owner

BEARER = HTTPBearer(auto_error=False, description="An API key of this server, if it has any.")
NOBODY = Owner()


async def owner_of(request: Request, _: Annotated[object, Depends(BEARER)] = None) -> Owner:
    """The owner of a request; see ``owner_of_connection``."""
    return owner_of_connection(request)


def owner_of_connection(request: HTTPConnection) -> Owner:
    """The owner of a request or a WebSocket.

    Raises:
        ApiError: The server has keys, and none of them was given.
    """
    keys: Keys = request.app.state.keys
    if not keys:
        return NOBODY
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    given = key.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key")
    found = keys.owner_of(given) if given else keys.owner_of_cookie(request.cookies.get(COOKIE, ""))
    if found is None:
        raise ApiError(
            401,
            "this server needs a key: send `Authorization: Bearer KEY`",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return found


Access = Annotated[Owner, Depends(owner_of)]
