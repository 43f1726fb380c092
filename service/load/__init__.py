"""A load generator: many requests from one process at little cost, with what became of each of them."""

from service.load.crowd import Crowd, Plan, Target
from service.load.samples import Samples, percentile

__all__ = ["Crowd", "Plan", "Samples", "Target", "percentile"]
