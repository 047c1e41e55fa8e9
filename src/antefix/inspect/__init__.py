"""What a prefix holds and does: its file alone, and beside its base model what attention and loss make of it."""

from antefix.inspect.contents import Contents, contents
from antefix.inspect.run import Inspection, inspect_recipe
from antefix.inspect.similarity import similarity

__all__ = ["Contents", "Inspection", "contents", "inspect_recipe", "similarity"]
