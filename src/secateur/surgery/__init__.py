"""From a Plan to real shapes: readers compensated, weights sliced and written, the result checked."""
