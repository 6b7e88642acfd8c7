"""State machines and time rules of sandboxes: pure functions; state and time are arguments."""
