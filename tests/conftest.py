"""For all tests: hypothesis may take its time, because no test says anything about a busy machine."""

from hypothesis import HealthCheck, settings

settings.register_profile("firebrick", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("firebrick")
