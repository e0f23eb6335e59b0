-- Tokens written to a provider's cache for an hour, which cost more than those of `cache_write`.
ALTER TABLE settlements ADD COLUMN cache_write_1h BIGINT NOT NULL DEFAULT 0;
