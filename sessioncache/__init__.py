"""Conversations that are never computed twice: their KV cache in tiers, by content and tenant, sealed."""
