"""Training a prefix: from a recipe and examples, or from a document that a base studies by itself."""

from antefix.training.distillation import Distillation, DistillationResult, distill
from antefix.training.recipe import Recipe
from antefix.training.reference import BareBase
from antefix.training.run import TrainingResult, train
from antefix.training.trainer import PrefixTrainer

__all__ = [
    "BareBase",
    "Distillation",
    "DistillationResult",
    "PrefixTrainer",
    "Recipe",
    "TrainingResult",
    "distill",
    "train",
]
