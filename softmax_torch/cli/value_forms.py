"""What a setting expects, in words and as an example, from the annotation in its source.

list[str] | None    a list of texts, or null     '["date"]'
"""

from __future__ import annotations

import ast
from typing import NamedTuple

__all__ = ["Form", "choices_of", "form_of"]


class Form(NamedTuple):
    """The form of a setting's values.

    Attributes:
        words: such as "a number or null".
        placeholder: stands for a value in the help, such as N for a whole number.
        example: a value as it is typed in a shell; "" for none.
    """

    words: str
    placeholder: str
    example: str


FORMS = {
    "int": Form("a whole number", "N", "10"),
    "float": Form("a number", "X", "0.1"),
    "str": Form("text", "TEXT", ""),
    "None": Form("null", "null", ""),
    "list[str]": Form("a list of texts", "LIST", """'["date"]'"""),
    "list[str | int]": Form("a list of texts or whole numbers", "LIST", """'["date"]'"""),
    "list[float]": Form("a list of numbers", "LIST", "'[0.1, 1, 10]'"),
    "list[int]": Form("a list of whole numbers", "LIST", "'[0, 1]'"),
    "tuple[int, int]": Form("two whole numbers", "LIST", "'[32, 32]'"),
    "dict[str, str]": Form("texts by name", "DICT", """'{"name": "text"}'"""),
    "OptimizerFactory": Form("an optimizer of torch.optim", "CLASS", "AdamW"),
    "SchedulerFactory": Form(
        "a schedule of torch.optim.lr_scheduler", "CLASS", "CosineAnnealingLR"
    ),
    "MetricsOption": Form("metrics, each with its class_path, in a YAML", "METRICS", ""),
    "BackboneOption": Form("the name of a network", "NAME", "small_cnn"),
}
"""The forms of annotations that are no union and no Literal."""


def choices_of(kind: str) -> list[str]:
    """Return the values that an annotation lists: those of a Literal, or true and false."""
    parts = _members(ast.parse(kind, mode="eval").body) if kind else []
    if any(ast.unparse(part) == "bool" for part in parts):
        return ["true", "false"]
    return [name for part in parts for name in _literal_names(part)]


def form_of(kind: str) -> Form:
    """Return the form of an annotation; an unknown type is named by its own name."""
    forms, words = [], []
    if not kind:
        return Form("a value", "VALUE", "")
    for part in _members(ast.parse(kind, mode="eval").body):
        text = ast.unparse(part)
        names = ["true", "false"] if text == "bool" else _literal_names(part)
        if names:
            short = "BOOL" if text == "bool" else "|".join(names)
            form = Form(_listed(names), short if len(short) < 12 else "NAME", names[0])
        else:
            name = text.rpartition(".")[2] if isinstance(part, ast.Attribute) else text
            article = "an" if name[0] in "AEIOU" else "a"
            form = FORMS.get(text, Form(f"{article} {name}", "VALUE", ""))
        if form.words == "null":
            continue
        forms.append(form)
        words += names or [form.words]
    if not forms:
        return FORMS["None"]
    first = forms[0]
    several = len(forms) > 1 and first.placeholder == first.example
    null = ["null"] if "None" in kind or "Optional" in kind else []
    return Form(
        _listed([*words, *null]),
        "VALUE" if several else first.placeholder,
        next((form.example for form in forms if form.example), ""),
    )


def _members(node: ast.expr) -> list[ast.expr]:
    """Return the members of a union, in each of its spellings."""
    if isinstance(node, ast.BinOp):
        return [*_members(node.left), *_members(node.right)]
    if isinstance(node, ast.Subscript):
        name = ast.unparse(node.value).rpartition(".")[2]
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if name in ("Union", "Optional"):
            none = [ast.Constant(None)] if name == "Optional" else []
            return [member for part in [*inner, *none] for member in _members(part)]
    return [node]


def _literal_names(node: ast.expr) -> list[str]:
    """Return the values of a Literal; none for another annotation."""
    if not isinstance(node, ast.Subscript) or not ast.unparse(node.value).endswith("Literal"):
        return []
    chosen = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    return [str(ast.literal_eval(choice)) for choice in chosen]


def _listed(words: list[str]) -> str:
    """Return "a, b or c"."""
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))
