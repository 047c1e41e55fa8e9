"""The small base model that comes with antefix, and the records it was pretrained on."""

from pathlib import Path


def model_path() -> Path:
    """Return the folder of the embedded model, as `from_pretrained` takes it."""
    return Path(__file__).with_name("model")
