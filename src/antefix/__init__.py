"""Prefix-tuning for every Transformers model: train, keep, mix and serve per-layer key/value prefixes."""

from antefix.bank import PrefixBank, attach
from antefix.composition import average, concat
from antefix.config import PrefixConfig
from antefix.encoder import PrefixEncoder
from antefix.errors import (
    AntefixError,
    ConfigError,
    ContextLengthError,
    DataError,
    DivergedError,
    PrefixFormatError,
    PrefixMismatchError,
    UnknownPrefixError,
    UnsupportedModelError,
)
from antefix.prefix import Prefix
from antefix.sites import Site, discover_sites
from antefix.storage import load_prefix, save_prefix

__version__ = "0.1.0"

__all__ = [
    "AntefixError",
    "ConfigError",
    "ContextLengthError",
    "DataError",
    "DivergedError",
    "Prefix",
    "PrefixBank",
    "PrefixConfig",
    "PrefixEncoder",
    "PrefixFormatError",
    "PrefixMismatchError",
    "Site",
    "UnknownPrefixError",
    "UnsupportedModelError",
    "attach",
    "average",
    "concat",
    "discover_sites",
    "load_prefix",
    "save_prefix",
]
