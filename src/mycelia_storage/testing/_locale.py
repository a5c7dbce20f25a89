"""An order of texts that no engine may depend on, as a locale of glibc.

Made by `postgres_server.py` for `locale="not-C"`: most machines for tests have no other locales than "C". Letters come
in the order a A b B c C, as in most languages; everything else has a place somewhere among them.
"""

from __future__ import annotations

import os
import subprocess
from typing import Final

NAME: Final = "not_C.UTF-8"

_CHARMAP: Final = """<code_set_name> UTF-8
<comment_char> %
<escape_char> /
<mb_cur_min> 1
<mb_cur_max> 6
CHARMAP
<U0000>..<U003F> /x00 controls, digits
<U0040>..<U007F> /x40 letters
END CHARMAP
"""
_SOURCE: Final = """comment_char %
escape_char /
LC_CTYPE
upper {upper}
lower {lower}
toupper {pairs_up}
tolower {pairs_down}
END LC_CTYPE
LC_COLLATE
order_start forward
{order}
UNDEFINED
order_end
END LC_COLLATE
"""


def make_locale(directory: str) -> None:
    """Make it in this directory, to be named by `LOCPATH`. Raises OSError where there is no localedef that can."""
    upper, lower = ([f"<U{code:04X}>" for code in range(ord(first), ord(first) + 26)] for first in "Aa")
    source = _SOURCE.format(
        upper=";".join(upper),
        lower=";".join(lower),
        pairs_up=";".join(f"({small},{large})" for small, large in zip(lower, upper, strict=True)),
        pairs_down=";".join(f"({large},{small})" for small, large in zip(lower, upper, strict=True)),
        order="\n".join(f"{small}\n{large}" for small, large in zip(lower, upper, strict=True)),
    )
    for name, text in (("charmap", _CHARMAP), ("source", source)):
        with open(os.path.join(directory, name), "w", encoding="ascii") as file:
            file.write(text)
    # It warns of the categories that are left out, and makes them as in "C".
    subprocess.run(  # noqa: S603
        ["localedef", "--force", "-i", "./source", "-f", "./charmap", f"./{NAME}"],  # noqa: S607
        cwd=directory,
        capture_output=True,
        check=False,
    )
    if not os.path.exists(os.path.join(directory, NAME, "LC_COLLATE")):
        raise OSError("localedef made no locale")
