"""Docstrings as the documentation's reference shows them: Sphinx's marks become Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

#: a name in code type, or in one of Sphinx's roles: :class:`~asyncinfer.events.Event`
NAME = re.compile(r"``([A-Za-z_]\w*)``|:\w+:`~?(?:[\w.]+\.)?(\w+)`")
#: what announces a block of code, at the end of a line or on one of its own
BLOCK = re.compile(r"^::$\n|(?<=:):$", re.MULTILINE)
#: a field, such as ``:param x:``, with the indented lines that belong to it
FIELD = re.compile(r"^:\w+[^:\n]*:.*(?:\n +\S.*)*\n?", re.MULTILINE)
#: what griffe says of every field of a dataclass
NOISE = {"class-attribute", "instance-attribute"}


class Markdown(griffe.Extension):
    """Rewrites all docstrings, and leaves out what has none and nobody calls by name."""

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Forget methods such as ``__aiter__``; ``__init__`` has the class's arguments."""
        for name, member in list(cls.members.items()):
            if member.is_special and name != "__init__" and not member.has_docstring:
                cls.del_member(name)
        init = cls.members.get("__init__")
        if isinstance(init, griffe.Function) and any(map(_takes, init.decorators)):
            init.parameters["options"].kind = griffe.ParameterKind.var_keyword

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite that of ``obj``."""
        obj.labels -= NOISE
        if obj.docstring is not None:
            obj.docstring.value = _markdown(obj.docstring.value, obj)


def _takes(decorator: griffe.Decorator) -> bool:
    """Whether it lets a driver be made with the fields of a dataclass, one by one."""
    return str(decorator.value).startswith("takes(")


def _markdown(text: str, scope: griffe.Object) -> str:
    fields = FIELD.findall(text)
    if fields:  # the parser takes all that follows the first field for a part of it
        text = "\n".join((FIELD.sub("", text), "".join(fields)))
    return NAME.sub(lambda name: _link(name[1] or name[2], scope), BLOCK.sub("", text))


def _link(name: str, scope: griffe.Object) -> str:
    """``name`` as code, and as a link if it is one of ours that has a place in the reference."""
    try:
        path = scope.resolve(name)
    except griffe.NameResolutionError:
        return f"`{name}`"
    return f'<autoref identifier="{path}" optional><code>{name}</code></autoref>'
