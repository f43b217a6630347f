"""Where answers come from: our workers, external servers, and a deterministic echo."""
