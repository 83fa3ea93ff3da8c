"""Streaming: shards to pinned batches in a pure, resumable order, and device transforms."""
