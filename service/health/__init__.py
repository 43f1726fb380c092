"""What probes ask: is the process alive, has it started, can it work, and which one is it."""

from service.health.lifetime import Lifetime
from service.health.readiness import Readiness
from service.health.routes import router
from service.health.version import installed_version

__all__ = ["Lifetime", "Readiness", "installed_version", "router"]
