"""The acts on one job: launch, look, stop, update, scale, adopt."""

from service.job_control.control import JobControl
from service.job_control.launching import CLEAN_LOOKS
from service.job_control.looking import LOST_AFTER, costs_calls
from service.job_control.stopping import DrainPolicy
from service.job_control.updating import UpdateRequest

__all__ = ["CLEAN_LOOKS", "LOST_AFTER", "DrainPolicy", "JobControl", "UpdateRequest", "costs_calls"]
