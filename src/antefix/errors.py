"""Everything antefix raises on purpose.

AntefixError
├── ConfigError             a setting that cannot be, or settings that contradict each other
│   ├── DataError           training data or a template that does not fit it
│   └── DivergedError       settings by which the loss or the prefix became NaN or infinite in training
├── ContextLengthError      prefix and prompt together pass the positions the model has
├── PrefixFormatError       a file that is not an intact prefix file
├── PrefixMismatchError     a prefix that was made for another base model
├── UnknownPrefixError      a name that the bank does not hold
└── UnsupportedModelError   a model, or a mode of it, that prefixes cannot reach
"""


class AntefixError(Exception):
    """Base class of every error that antefix raises on purpose."""


class ConfigError(AntefixError, ValueError):
    """A setting cannot be what it was set to, or contradicts another."""


class DataError(ConfigError):
    """Training data is empty, malformed, or lacks a field that a template names."""


class DivergedError(ConfigError):
    """The loss or the prefix became NaN or infinite in training; most often, the learning rate is too high."""


class ContextLengthError(AntefixError, ValueError):
    """Prefix and prompt together need more positions than the base model has."""


class PrefixFormatError(AntefixError, ValueError):
    """A file is not a prefix file, or not an intact one."""


class PrefixMismatchError(AntefixError, ValueError):
    """A prefix belongs to a base model with other sites; the message lists what differs."""


class UnknownPrefixError(AntefixError, KeyError):
    """The bank holds no prefix of this name."""

    def __str__(self) -> str:
        """Return the plain sentence, which `KeyError` would quote."""
        return str(self.args[0]) if self.args else ""


class UnsupportedModelError(AntefixError, NotImplementedError):
    """The model, or the way it is run, gives a prefix no way in."""


def on_one_line(text: object) -> str:
    """Return a text, such as the message of another library's error, without its line breaks."""
    return " ".join(str(text).split())


def no_copies_of(model: object) -> UnsupportedModelError:
    """Return what refuses to copy or pickle a model, as that would be with its bank's hooks and without its bank."""
    return UnsupportedModelError(
        f"this {type(model).__name__} has a bank of prefixes, which cannot be copied or pickled; copy the model before "
        "attach(), or detach() the bank first."
    )
