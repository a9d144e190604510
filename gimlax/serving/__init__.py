"""Responses out of passes: generation of one sequence over whatever runs a model."""

from gimlax.serving.agreement import Agreement, check, compare
from gimlax.serving.generate import Finish, Request, Statistics, Token, follow, generate
from gimlax.serving.runner import Runner, StepRunner, chunk_length
from gimlax.serving.sampling import Sampling, sample

__all__ = [
    "Agreement",
    "Finish",
    "Request",
    "Runner",
    "Sampling",
    "Statistics",
    "StepRunner",
    "Token",
    "check",
    "chunk_length",
    "compare",
    "follow",
    "generate",
    "sample",
]
