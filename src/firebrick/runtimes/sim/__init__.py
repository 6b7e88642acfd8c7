"""The simulated runtime: machines that are entries in a table, for tests and for runs at scale."""
