"""The API as an OpenAPI document: what bodies hold, what answers hold, and every path."""
