"""What the service counts of itself: plain numbers in each process, added up over all of them at a scrape."""

from service.metrics.values import Metrics

__all__ = ["Metrics"]
