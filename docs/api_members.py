"""A griffe extension: attributes that only `__init__` sets, and that nobody documented, stay out of the API pages."""

from __future__ import annotations

from typing import Any

import griffe


class ApiMembers(griffe.Extension):
    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        for name, member in list(cls.members.items()):
            internal = member.is_attribute and member.labels & {"instance-attribute"} == member.labels
            if internal and not member.has_docstring:
                cls.del_member(name)
