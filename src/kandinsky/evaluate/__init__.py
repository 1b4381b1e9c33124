"""How good are the results: quality metrics, prompt sets, side-by-side comparisons by people, and their statistics."""
