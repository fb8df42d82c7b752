"""The explorer's page: files of the package, and the gallery that the configuration names."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import Response

from raypref.errors import InputError

PAGE_FILES = {
    "/explore": ("index.html", "text/html; charset=utf-8"),
    "/explore/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/explore/page.css": ("page.css", "text/css; charset=utf-8"),
}
"""Paths that are answered without a key: they say nothing of anybody."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_router(gallery: Path) -> APIRouter:
    """Return the routes of the page.

    Raises:
        InputError: the gallery cannot be read.
    """
    try:
        held = gallery.read_bytes()
    except OSError as error:
        raise InputError(f"{gallery}: cannot be read ({error}); `raypref explore` writes it.") from error
    router = APIRouter(include_in_schema=False)
    folder = files("raypref.serve") / "page"

    def add(path: str, body: bytes, kind: str) -> None:
        async def answer() -> Response:
            return Response(body, media_type=kind, headers=HEADERS)

        router.add_api_route(path, answer, methods=["GET", "HEAD"])

    for path, (name, kind) in PAGE_FILES.items():
        add(path, (folder / name).read_bytes(), kind)
    add("/explore/gallery.json", held, "application/json")
    return router
