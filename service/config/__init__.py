"""The settings: variables `SIGNIN_...`, a `.env` file and secret files, read once and passed as a value."""

from service.config.dataflow import Pipeline
from service.config.listing import listed
from service.config.masking import masked
from service.config.places import LOCAL_PROJECT
from service.config.settings import TOPICS, Settings, is_loopback
from service.config.sources import load
from service.config.variables import variable_name

__all__ = [
    "LOCAL_PROJECT",
    "TOPICS",
    "Pipeline",
    "Settings",
    "is_loopback",
    "listed",
    "load",
    "masked",
    "variable_name",
]
