"""Distilling a document into a prefix: a base with it in context teaches the base with the prefix (Cartridges)."""

from antefix.training.distillation.run import DistillationResult, distill
from antefix.training.distillation.settings import Distillation

__all__ = ["Distillation", "DistillationResult", "distill"]
