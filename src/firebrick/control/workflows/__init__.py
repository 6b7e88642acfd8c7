"""One file per operation: ordered steps with their undo. Each step may be repeated; progress is in the store."""
