"""The interpreter's collector of cycles, kept from looking at what stays.

Owns: when what lives is set aside. A full collection walks every container of the process, tens of milliseconds in
which neither a step is planned nor a byte is sent; after a start nearly all of these containers (modules, models,
vocabularies) stay to the end. Set aside, they are walked no more, and what a collection finds is what has come since.
Called on the network thread by whoever has just loaded a model or let one go. Idle costs nothing.
Nor does the event loop keep its list of all asynchronous generators, a weak reference for each, to close them when it
ends: a request begins a dozen, and the task that iterates one closes it. One that is dropped is closed all the same.
"""

from __future__ import annotations

import gc
import sys

_YOUNG, _MIDDLE, _OLD = 5_000, 20, 20  # objects until a collection, and how many of each kind until one of the next


def set_aside() -> None:
    """Collect what is dead, whatever its age, and leave what lives out of collections from now on."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)


def keep_no_list_of_generators() -> None:
    """Let the running loop keep no list of asynchronous generators; call it in the loop, whose end undoes it."""
    sys.set_asyncgen_hooks(firstiter=None)
