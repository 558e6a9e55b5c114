"""Every verb is a typed action; one handler answers it.

`execute(action)` here and now, `enqueue(action)` for a worker; `answer(action)` for the edges,
which want an ActionResult and never an exception.
"""
