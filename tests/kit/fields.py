"""The fields of a class with slots, interpreted or compiled."""

import inspect


def fields(kind: type) -> list[str]:
    """Names of what an instance holds; mypyc makes no `__slots__`."""
    return [name for name, value in vars(kind).items() if inspect.isdatadescriptor(value) and not name.startswith("__")]
