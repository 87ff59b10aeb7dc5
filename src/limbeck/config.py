"""The base of every part of a recipe: frozen, strict, an unknown key is an error."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One section of a recipe. Values keep their YAML type: the string "1" is not the number 1."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, serialize_by_alias=True
    )
