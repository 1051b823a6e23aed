"""Settings for all tests."""

from hypothesis import settings

# No deadline: a slow machine, or a first call that imports, is not a failure.
settings.register_profile("fxprune", deadline=None)
settings.load_profile("fxprune")
