"""Solvers on plain arrays: each knows a kind of problem and nothing of models or devices."""
