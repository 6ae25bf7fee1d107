"""Recipes and their code, which `rectune.recipes` loads by path; the wheel leaves them out."""
