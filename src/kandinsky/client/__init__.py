"""A small client of `kandinsky serve`: ``Client`` and ``AsyncClient``, over httpx alone, without torch."""

from kandinsky.client.asynchronous import AsyncClient
from kandinsky.client.failures import ApiError, JobFailed
from kandinsky.client.synchronous import Client
from kandinsky.client.values import Event, Job, Model

__all__ = ["ApiError", "AsyncClient", "Client", "Event", "Job", "JobFailed", "Model"]
