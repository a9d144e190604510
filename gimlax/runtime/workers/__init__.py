"""Stages in other processes: workers, what they are told, and what they tell."""

from gimlax.runtime.workers.deploying import deploy_on_workers
from gimlax.runtime.workers.fleet import Workers, start_workers
from gimlax.runtime.workers.refusing import refuse_callbacks

__all__ = ["Workers", "deploy_on_workers", "refuse_callbacks", "start_workers"]
