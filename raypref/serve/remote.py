"""The ingress's way to other deployments: retried while replicas come and go, within a deadline."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any, Protocol

from grpc import StatusCode
from grpc.aio import AioRpcError
from ray.exceptions import RayActorError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle

from raypref.wire.errors import WireError

FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 1.0


class Remote(Protocol):
    """Whoever answers the calls of a deployment, such as `raypref.serve.scorer.Scorer`."""

    async def call(self, method: str, *args: object) -> Any:
        """Return what the deployment answers.

        Raises:
            WireError: what it refused, or that no replica could be reached in time.
        """
        ...


class RayRemote:
    """A deployment behind a Serve handle.

    Every call may be sent again: comparisons and decays have ids, and everything else changes nothing twice.
    """

    def __init__(self, handle: DeploymentHandle, timeout_s: float) -> None:
        """Give every call `timeout_s`, its retries included."""
        self._handle = handle
        self._name = handle.deployment_name
        self._timeout_s = timeout_s

    async def call(self, method: str, *args: object) -> Any:
        """Return what the deployment answers; see `Remote.call`."""
        deadline_s = time.monotonic() + self._timeout_s
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                async with asyncio.timeout(deadline_s - time.monotonic()):
                    answer = await getattr(self._handle, method).remote(*args)
            except BackPressureError:
                raise WireError(429, f"{self._name} has no room; try again.", retry_after_s=1) from None
            except TimeoutError:
                raise WireError(
                    503,
                    f"{self._name} did not answer within {self._timeout_s:g} s; try again.",
                    retry_after_s=1,
                ) from None
            except (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError, AioRpcError) as error:
                # The replica died under the call, or is on its way up or down.
                if isinstance(error, AioRpcError) and error.code() is not StatusCode.CANCELLED:
                    raise
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)
                if time.monotonic() + pause_s > deadline_s:
                    raise WireError(503, f"no {self._name} is up; try again.", retry_after_s=1) from error
                await asyncio.sleep(pause_s)
                continue
            if isinstance(answer, WireError):
                raise answer
            return answer
