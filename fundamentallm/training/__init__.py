"""Training: the loop, what it steps with, and who is told."""

from fundamentallm.training.callbacks import BaseCallback
from fundamentallm.training.session import run_training
from fundamentallm.training.trainer import Trainer

__all__ = ["BaseCallback", "Trainer", "run_training"]
