"""A typed client of the service, blocking and for asyncio: no torch, no Ray."""

from raypref.client.async_client import AsyncClient
from raypref.client.client import Client
from raypref.client.errors import ClientError, NotFound, RequestRefused, Unauthorized, Unavailable
from raypref.client.items import Comparison, Pair
from raypref.client.scores import Scores

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "Comparison",
    "NotFound",
    "Pair",
    "RequestRefused",
    "Scores",
    "Unauthorized",
    "Unavailable",
]
