"""``redimnet2 serve``: an HTTP service that knows voices.

Authors
 * The ReDimNet2 for SpeechBrain contributors, 2026
"""

from __future__ import annotations

import os
import socket
import sys

import click

from redimnet2_lobes.cli.encoder import (
    ModelOptions,
    any_length,
    encoder_options,
    find_operating_point,
    find_own_operating_points,
    load_encoder,
    threshold_option,
    vad_option,
)
from redimnet2_lobes.cli.group import command, note, number

TOKEN_VARIABLE = "REDIMNET2_TOKEN"
SHORTEST_TOKEN = 16  # characters
above_zero = number(
    float, sys.float_info.min, sys.float_info.max, "a number above 0"
)


@command("--store=voices.sqlite --model=redimnet2_b3")
@encoder_options
@vad_option
@click.option(
    "--store",
    required=True,
    metavar="FILE",
    help="The voices that are known; it is made if it is not there.",
)
@threshold_option
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="The address to listen at. Another than localhost needs a token.",
)
@click.option(
    "--port",
    default=8000,
    show_default=True,
    metavar="N",
    type=number(int, 0, 65535, "a whole number from 0 to 65535"),
    help="The port to listen at; 0 for any that is free.",
)
@click.option(
    "--token_file",
    metavar="FILE",
    help="A file with the token that requests must bear, in at least "
    f"{SHORTEST_TOKEN} characters. By default it is that of the variable "
    f"{TOKEN_VARIABLE}.",
)
@click.option(
    "--max_megabytes",
    default=10,
    show_default=True,
    metavar="MB",
    type=above_zero,
    help="The largest recording, as it is sent.",
)
@click.option(
    "--max_seconds",
    default=60,
    show_default=True,
    metavar="SECONDS",
    type=above_zero,
    help="The longest recording.",
)
@click.option(
    "--max_requests",
    default=64,
    show_default=True,
    metavar="N",
    type=number(int, 1, sys.maxsize, "a whole number from 1 on"),
    help="Recordings at a time, received, waiting and computed. More are sent "
    "away.",
)
@click.option(
    "--timeout",
    default=30,
    show_default=True,
    metavar="SECONDS",
    type=above_zero,
    help="The longest time that receiving and computing may take.",
)
def serve(
    options: ModelOptions,
    vad: bool,
    store: str,
    threshold: float | None,
    host: str,
    port: int,
    token_file: str | None,
    max_megabytes: float,
    max_seconds: float,
    max_requests: int,
    timeout: float,
) -> None:
    """Enrols, verifies and identifies voices over HTTP.

    Recordings are not kept. The routes are in docs/service.md. SIGTERM or
    Ctrl-C ends it, when the requests that it has are answered.
    """
    try:
        import uvicorn

        from redimnet2_lobes.voices.requests import Limits
        from redimnet2_lobes.voices.service import make_app
    except ImportError as error:
        raise ValueError(
            f"the service needs more packages ({error}); pip install starlette "
            "uvicorn prometheus-client"
        ) from None
    token = _token(token_file)
    if token is None and not _is_local(host):
        raise ValueError(
            f"--host: {host} may be reached from elsewhere, which takes a "
            f"token; give --token_file, set {TOKEN_VARIABLE}, or leave out "
            "--host"
        )
    # Before the model is loaded, which takes a while.
    listening = _listen(host, port)
    with listening:
        loaded = load_encoder(options)

        import torch

        from redimnet2_lobes.data.speech import find_speech
        from redimnet2_lobes.models.front_end import SAMPLE_RATE
        from redimnet2_lobes.models.threads import usable_threads
        from redimnet2_lobes.voices.store import VoiceStore

        VoiceStore(store, loaded.space).close()  # or a line says why not
        own = find_own_operating_points(None, store, loaded)
        operating_point = find_operating_point(threshold, own, loaded, vad)
        encode_batch = any_length(loaded.encoder)
        # What first calls load, once for all threads.
        second = torch.zeros(1, SAMPLE_RATE)
        with torch.no_grad():
            encode_batch(second, torch.ones(1))
        if vad:
            find_speech(second[0])
        app = make_app(
            *(encode_batch, store, loaded.space, token, operating_point),
            *(own if own and own.speech_only == vad else None, vad),
            limits=Limits(
                max_megabytes,
                max_seconds,
                timeout,
                max_requests,
                usable_threads(options.threads),
            ),
        )
        _log_requests()
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,  # it has paths, and they the names of voices
                server_header=False,
                # Longer than proxies keep idle connections, or else they may
                # send a request while one is closed.
                timeout_keep_alive=75,
            )
        )
        address, port = listening.getsockname()[:2]
        address = f"[{address}]" if ":" in address else address
        note(f"listening at http://{address}:{port}, until SIGTERM or Ctrl-C")
        server.run([listening])


def _token(path: str | None) -> str | None:
    """The token of a file, or of the environment."""
    where, token = TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE)
    if path is not None:
        where = "--token_file"
        with open(path, encoding="utf-8", errors="replace") as file:
            token = file.read(10_000)
    if token is None:
        return None
    token = token.strip()
    if (
        len(token) < SHORTEST_TOKEN
        or not token.isascii()
        or not token.isprintable()
        or " " in token
    ):
        raise ValueError(
            f"{where}: a token has at least {SHORTEST_TOKEN} letters and "
            "digits, in one word; make one with openssl rand -hex 32"
        )
    return token


def _is_local(host: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise ValueError(
            f"--host: {host}, port {port} cannot be listened at "
            f"({error.strerror}); choose another"
        ) from None


def _log_requests() -> None:
    """Logs requests on stderr, each by its route."""
    import logging

    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("redimnet2_lobes").setLevel(logging.INFO)
