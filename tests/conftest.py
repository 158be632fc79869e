"""What holds for all tests."""

from hypothesis import HealthCheck, settings

# Machines are busy at times: no example, and no drawing of one, is too slow. Every run draws the same examples;
# `pytest --hypothesis-profile=default` draws new ones.
settings.register_profile("patient", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
