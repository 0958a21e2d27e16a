"""The one error that means: the user can mend this."""


class UserError(Exception):
  """Something the user asked for cannot be done; the message says what, where, and what to do.

  Entry points print the message without a traceback and exit with code 2. Everything else that is
  raised is a defect of ours and keeps its traceback.
  """
