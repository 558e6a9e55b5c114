"""Form fields made from pydantic shapes."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from django import forms
from django.utils.text import capfirst
from django.utils.translation import gettext_lazy as _
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


class YesOrNoField(forms.TypedChoiceField):
    """True, false, or None while nobody has said: a switch would say no by itself."""

    widget = UnfoldAdminSelectWidget

    def __init__(self, **kwargs: Any) -> None:
        choices = [("", "-"), ("True", _("yes")), ("False", _("no"))]
        super().__init__(choices=choices, coerce=lambda text: text == "True", empty_value=None, **kwargs)


def fields_of(
    shape: type[BaseModel], prefix: str, words: dict[str, tuple[Any, Any]]
) -> dict[str, forms.Field]:
    """A form field for each of the shape's, named `prefix` + its name; `words` are (label, help).

    A shape inside the shape gives its own fields, with its name before theirs (`fallback_model`).
    """
    fields = {}
    for name, path, info in _leaves(shape):
        words_here = words.get(name, (name.replace("_", " "), ""))
        fields[prefix + name] = _field(info, *words_here, inner=len(path) > 1)
    return fields


def _leaves(shape: type[BaseModel]) -> Iterator[tuple[str, tuple[str, ...], FieldInfo]]:
    """The shape's fields and those of the optional shapes in it: name in the form, path, info."""
    for name, info in shape.model_fields.items():
        kind, optional = _kind(info)
        if optional and isinstance(kind, type) and issubclass(kind, BaseModel):
            for inner, inner_info in kind.model_fields.items():
                yield f"{name}_{inner}", (name, inner), inner_info
        else:
            yield name, (name,), info


def _kind(info: FieldInfo) -> tuple[Any, bool]:
    """A field's type, and whether it may be None."""
    kind: Any = info.annotation
    # Of `int | None` the first is the type; the second says that it may stay empty.
    optional = get_origin(kind) in (Union, types.UnionType)
    kind = get_args(kind)[0] if optional else kind
    return (get_args(kind)[0] if get_origin(kind) is Annotated else kind), optional


def _field(info: FieldInfo, label: Any, help_text: Any, *, inner: bool) -> forms.Field:
    kind, optional = _kind(info)
    optional = optional or inner  # of a shape inside the shape all may stay empty
    default = None if info.default is PydanticUndefined else info.default
    common: dict[str, Any] = {
        "label": capfirst(label),
        "help_text": help_text,
        "initial": default,
        "required": not optional and default != "",
    }
    if get_origin(kind) is Literal:
        choices = [("", "-")] if optional else []
        choices += [(value, value) for value in get_args(kind)]
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
    initial = {}
    for name, path, _info in _leaves(type(value)):
        part: Any = value
        for step in path:
            part = getattr(part, step, None)  # what is inside None is None
        initial[prefix + name] = part
    return initial


def value_of(form: forms.BaseForm, shape: type[BaseModel], prefix: str) -> BaseModel | None:
    """The shape that the form's fields spell; None, and errors at the fields, when they do not fit it."""
    leaves = list(_leaves(shape))
    if any(prefix + name in form.errors for name, _path, _info in leaves):
        return None
    values: dict[str, Any] = {}
    for name, path, _info in leaves:
        value = form.cleaned_data.get(prefix + name)
        if len(path) > 1 and value not in (None, ""):
            values.setdefault(path[0], {})[path[1]] = value
        elif len(path) == 1 and value is not None:
            values[name] = value
    try:
        return shape(**values)
    except ValidationError as error:
        names = {path: name for name, path, _info in leaves}
        for problem in error.errors():
            path = tuple(map(str, problem["loc"]))
            form.add_error(prefix + names.get(path[:2], path[0]), problem["msg"])
        return None


def given_in(form: forms.BaseForm, shape: type[BaseModel], prefix: str) -> dict[str, Any]:
    """What the form's fields say of the shape, shapes in it as dicts; what was left empty is missing."""
    values: dict[str, Any] = {}
    for name, path, _info in _leaves(shape):
        value = form.cleaned_data.get(prefix + name)
        if value not in (None, "", []):
            *above, last = path
            place = values
            for step in above:
                place = place.setdefault(step, {})
            place[last] = value
    return values
