"""Whether this project's modules can be imported where others of their names may be imported already.

Imports nothing of the project, which might be another's.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def check_own_modules(*names: str):
    """Before the first import of this project: it would find another's module, and say that it lacks something.

    Raises:
        ImportError: a module of one of these names is imported already, and is not this project's.
    """
    for name in names:
        other = sys.modules.get(name)
        places = [getattr(other, "__file__", None) or "", *getattr(other, "__path__", ())]
        places = [place for place in places if place]
        if other is not None and not any(Path(place).resolve().is_relative_to(ROOT) for place in places):
            raise ImportError(
                f"LeanDETR imports its own modules under the names {' and '.join(names)}, and '{name}' is another one "
                f"here already, of {next(iter(places), 'no file')}. Load LeanDETR in a process that has not imported "
                "it, or call yours something else"
            )
