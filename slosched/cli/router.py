"""The router before real servers."""

from __future__ import annotations

from typing import Annotated

import typer

from slosched.cli import common as c


def router(
    server: Annotated[
        list[str],
        typer.Option("--server", metavar="URL", help="Root of an OpenAI-compatible server; several."),
    ],
    data_parallel_size: Annotated[
        int, typer.Option(min=1, help="Ranks of each server, steered by the header X-data-parallel-rank.")
    ] = 1,
    router: Annotated[
        str,
        typer.Option("--router", metavar="NAME", help="Router: NAME, NAME:key=value, package.module:Class."),
    ] = "slosched",
    engine: c.EngineName = c.DEFAULT_ENGINE,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port to listen on.")] = 8080,
    refuse_status: Annotated[int, typer.Option(help="Status of refusals: 429 or 503.")] = 429,
    statistics: Annotated[float, typer.Option(help="Seconds between looks at an engine's /metrics.")] = 0.25,
    hold: Annotated[float, typer.Option(help="Longest seconds a request may be held.")] = 30.0,
    silence: Annotated[
        float, typer.Option(help="Longest seconds an engine may say nothing before or within an answer.")
    ] = 600.0,
    drain: Annotated[
        float, typer.Option(help="Seconds that answers have to end after SIGTERM; then they are cut off.")
    ] = 30.0,
    max_body: Annotated[int, typer.Option(min=1, help="Largest request body in MiB; 413 beyond.")] = 64,
    pass_slo: Annotated[
        bool, typer.Option(help="Write SLO headers into the body, where vLLM's scheduler sees them.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Seed of a router that draws.")] = 0,
) -> None:
    """Send each request to the engine where most SLOs are met: a reverse proxy for OpenAI-compatible servers.

    SLOs come in the body (vllm_xargs: slo_ttft_ms, slo_tpot_ms, slo_e2e_ms, slo_ttfat_ms, slo_class,
    slo_weight) or in headers (x-slo-ttft-ms, x-llm-d-slo-ttft-ms, …). Classes and bounds are those of the
    file that SLOSCHED_CONFIG names. /health and /metrics are the router's own.

    Example: slosched router --server http://a:8000 --server http://b:8000 --port 8080
    """
    from slosched.integrations.proxy import serve
    from slosched.integrations.proxy_settings import RouterSettings

    settings = RouterSettings(
        engines=tuple(server), data_parallel_size=data_parallel_size, router=router, profile=engine,
        refuse_status=refuse_status, statistics_s=statistics, hold_s=hold, pass_slo=pass_slo, seed=seed,
        silence_s=silence, drain_s=drain,
        max_body_bytes=max_body * 1024 * 1024,
    )  # fmt: skip
    c.say(f"Router on http://{host}:{port} before {len(server)} server(s), router {router}.")
    serve(settings, host=host, port=port)
