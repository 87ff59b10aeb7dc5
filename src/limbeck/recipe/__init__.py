"""Recipes: what a run does, by method, read strictly."""

from limbeck.recipe.comd import CoMDRecipe
from limbeck.recipe.ctvlm import CTVLMRecipe
from limbeck.recipe.dlip import DLIPRecipe
from limbeck.recipe.reader import METHODS, SHIPPED, Recipe, find_recipe, load_recipe, recipe_schema, shipped_recipes
from limbeck.recipe.shared import RecipeError

__all__ = [
    "METHODS",
    "SHIPPED",
    "CTVLMRecipe",
    "CoMDRecipe",
    "DLIPRecipe",
    "Recipe",
    "RecipeError",
    "find_recipe",
    "load_recipe",
    "recipe_schema",
    "shipped_recipes",
]
