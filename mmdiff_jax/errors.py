"""Errors that are not defects of the program: what the user can correct, and preemption."""


class UserError(Exception):
  """Something the user asked for cannot be done; the message says what, where, and how to fix it.

  Entry points print the message without a traceback and exit with code 2. Any other exception is
  a bug in this package and keeps its traceback.
  """


class PreemptedError(Exception):
  """Training was asked to stop (SIGTERM) and can be resumed later with the same command.

  Entry points print the message and exit with code 75, which schedulers take as "run it again".
  """
