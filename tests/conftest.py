"""Settings that hold for every test."""

import hypothesis

# The first example of a test may compile, so a deadline would measure the compiler; the same
# examples in every run, so that a failure on one machine is a failure on all.
hypothesis.settings.register_profile("gimlax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("gimlax")
