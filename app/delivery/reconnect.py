"""DOC"""

OPERATOR_SECONDS = 1.0  # An operator who disconnects tells Kommo first: that must not be undone.
