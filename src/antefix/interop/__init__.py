"""Other libraries, met where they are."""
