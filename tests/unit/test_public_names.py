"""The public names are a promise; changing them is a decision, not an accident."""

from __future__ import annotations

import inspect

import antefix


def test_public_names() -> None:
    assert antefix.__all__ == [
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


def test_every_error_is_an_antefix_error_drawn_in_the_tree() -> None:
    from antefix import errors

    raised = [value for value in vars(errors).values() if inspect.isclass(value)]
    assert all(issubclass(error, antefix.AntefixError) for error in raised)
    assert all(error.__name__ in errors.__doc__ for error in raised)
    assert str(antefix.UnknownPrefixError("plain words")) == "plain words"
