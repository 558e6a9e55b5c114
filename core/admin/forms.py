"""Form fields made from pydantic shapes."""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin

from django import forms
from django.utils.text import capfirst
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from unfold.widgets import (
    UnfoldAdminDecimalFieldWidget,
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

LONG = 1_000  # from this bound on, a text gets a box of several lines


class TextField(forms.CharField):
    """A text of several lines, kept as it is but for the line ends that browsers send."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(strip=False, **kwargs)

    def to_python(self, value: Any) -> Any:
        text = super().to_python(value)
        return text.replace("\r\n", "\n") if isinstance(text, str) else text


class LinesField(forms.CharField):
    """A list of texts, one a line."""

    widget = UnfoldAdminTextareaWidget

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(value) if isinstance(value, list | tuple) else value

    def to_python(self, value: Any) -> Any:
        text = super().to_python(value) or ""
        return [line.strip() for line in text.splitlines() if line.strip()]

    def has_changed(self, initial: Any, data: Any) -> bool:
        return bool(list(initial or []) != self.to_python(data))


def fields_of(
    shape: type[BaseModel], prefix: str, words: dict[str, tuple[Any, Any]]
) -> dict[str, forms.Field]:
    """A form field for each of the shape's, named `prefix` + its name; `words` are (label, help)."""
    return {
        prefix + name: _field(info, *words.get(name, (name.replace("_", " "), "")))
        for name, info in shape.model_fields.items()
    }


def _field(info: FieldInfo, label: Any, help_text: Any) -> forms.Field:
    kind, optional = info.annotation, False
    if get_origin(kind) in (Union, types.UnionType):
        # Of `int | None` the first is the type; the second says that it may stay empty.
        kind, optional = get_args(kind)[0], True
    default = None if info.default is PydanticUndefined else info.default
    common: dict[str, Any] = {
        "label": capfirst(label),
        "help_text": help_text,
        "initial": default,
        "required": not optional and default != "",
    }
    if get_origin(kind) is Literal:
        choices = [(value, value) for value in get_args(kind)]
        return forms.ChoiceField(choices=choices, widget=UnfoldAdminSelectWidget, **common)
    if kind is bool:
        return forms.BooleanField(widget=UnfoldBooleanSwitchWidget, **{**common, "required": False})
    if kind is int:
        return forms.IntegerField(widget=UnfoldAdminIntegerFieldWidget, **common)
    if kind is float:
        widget = UnfoldAdminDecimalFieldWidget({"step": "any"})
        return forms.FloatField(widget=widget, **common)
    if kind is str:
        bounds = [getattr(item, "max_length", None) for item in info.metadata]
        if any(bound is not None and bound >= LONG for bound in bounds):
            return TextField(widget=UnfoldAdminTextareaWidget({"rows": 4}), **common)
        return forms.CharField(widget=UnfoldAdminTextInputWidget, **common)
    if get_origin(kind) in (list, tuple):
        return LinesField(**{**common, "required": False})
    raise TypeError(f"no form field for {kind}")


def initial_of(value: BaseModel, prefix: str) -> dict[str, Any]:
    return {prefix + name: getattr(value, name) for name in type(value).model_fields}


def value_of(form: forms.BaseForm, shape: type[BaseModel], prefix: str) -> BaseModel | None:
    """The shape that the form's fields spell; None, and errors at the fields, when they do not fit it."""
    values = {name: form.cleaned_data.get(prefix + name) for name in shape.model_fields}
    if any(prefix + name in form.errors for name in shape.model_fields):
        return None
    try:
        return shape(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        for problem in error.errors():
            form.add_error(f"{prefix}{problem['loc'][0]}", problem["msg"])
        return None
