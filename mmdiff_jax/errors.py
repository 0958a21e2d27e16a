"""Errors that are no defects of the program: what the user can mend, and being asked to stop."""


class UserError(Exception):
  """Something the user asked for cannot be done; the message says what, where, and what to do.

  Entry points print the message without a traceback and exit with code 2. Everything else that is
  raised is a defect of ours and keeps its traceback.
  """


class PreemptedError(Exception):
  """Training was asked to end (SIGTERM) and can go on later, with the same command.

  Entry points print the message and exit with code 75, which schedulers take as "run it again".
  """
