"""antefix with the real libraries around it."""
