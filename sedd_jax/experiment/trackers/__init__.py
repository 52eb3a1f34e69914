"""Where the rows of a run go beside its JSON lines: one file per tracker."""
