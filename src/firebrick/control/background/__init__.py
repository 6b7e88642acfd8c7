"""Reconcilers: functions without input that compare what shall be with what is, again and again."""
