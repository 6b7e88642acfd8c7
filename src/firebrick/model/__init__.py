"""Words: frozen values, typed ids, enums and errors. No I/O, no clock, nothing of ours below it."""
