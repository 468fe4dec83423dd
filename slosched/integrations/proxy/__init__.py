"""A reverse proxy in front of OpenAI-compatible servers that sends each request where its SLO is met.

Importing this package imports neither aiohttp nor uvicorn; serving does.
"""
