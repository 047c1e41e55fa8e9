"""Training a prefix from a recipe: data, templates, the Trainer and what it reports."""

from antefix.training.recipe import Recipe
from antefix.training.reference import BareBase
from antefix.training.run import TrainingResult, train
from antefix.training.trainer import PrefixTrainer

__all__ = ["BareBase", "PrefixTrainer", "Recipe", "TrainingResult", "train"]
