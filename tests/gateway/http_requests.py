"""Bare HTTP requests to a gateway."""

import json
from collections.abc import Mapping
from typing import Any

import aiohttp

from tests.gateway.scene import Scene

TEXT, CHAT, MODELS = "/v1/completions", "/v1/chat/completions", "/v1/models"


async def post(scene: Scene, path: str, body: object, **headers: str) -> tuple[int, Any, Mapping[str, str]]:
    """Return the status, the JSON and the headers of a bare POST."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    every = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        aiohttp.ClientSession() as session,
        session.post(scene.url + path, data=data, headers=every) as answer,
    ):
        return answer.status, await answer.json(), answer.headers


async def get(scene: Scene, path: str) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.get(scene.url + path) as answer:
        return answer.status, await answer.json()
