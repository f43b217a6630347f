"""Pure rules of continuous batching: who waits, who runs, and which KV block holds what."""
