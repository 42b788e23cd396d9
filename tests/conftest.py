"""What holds for all lanes."""

from hypothesis import HealthCheck, settings

# How long an example takes tells of the machine, not of us. All else is as it was, also under CI.
settings.register_profile(
    "any machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")
