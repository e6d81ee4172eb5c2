"""Recipes: which model is meant, as validated data."""
