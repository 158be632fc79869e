"""What holds for all tests."""

from hypothesis import HealthCheck, settings

# Machines are busy at times: no example, and no drawing of one, is too slow.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
