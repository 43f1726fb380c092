"""The settings: environment variables `SIGNIN_...` and a `.env` file, read once and passed as a value."""

from service.config.dataflow import Pipeline
from service.config.places import LOCAL_PROJECT
from service.config.settings import TOPICS, Settings, is_loopback

__all__ = ["LOCAL_PROJECT", "TOPICS", "Pipeline", "Settings", "is_loopback"]
