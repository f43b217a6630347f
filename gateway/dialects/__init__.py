"""Body to Call, Delta to bytes, refusal to bytes: one module a dialect, all pure."""
