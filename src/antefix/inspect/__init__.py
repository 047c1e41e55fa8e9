"""What a prefix holds, by its file alone, and what it does to the attention and loss of its base model."""

from antefix.inspect.contents import Contents, contents
from antefix.inspect.run import Inspection, inspect_recipe
from antefix.inspect.similarity import similarity

__all__ = ["Contents", "Inspection", "contents", "inspect_recipe", "similarity"]
