-- What an engine of ours did for a request, and what that cost at the machine's rate; null where the rate is unknown.
ALTER TABLE settlements ADD COLUMN engine_ns BIGINT NOT NULL DEFAULT 0;
ALTER TABLE settlements ADD COLUMN machine_nano BIGINT;
-- The rest of each engine's time. `_ns` are durations but `from_ns` and `until_ns`, which are Unix times.
CREATE TABLE engine_spans (
    id TEXT PRIMARY KEY,
    engine TEXT NOT NULL,
    model TEXT NOT NULL,
    from_ns BIGINT NOT NULL,
    until_ns BIGINT NOT NULL,
    total_ns BIGINT NOT NULL,
    loading_ns BIGINT NOT NULL,
    requests_ns BIGINT NOT NULL,
    recomputed_ns BIGINT NOT NULL,
    abandoned_ns BIGINT NOT NULL,
    idle_ns BIGINT NOT NULL,
    pool_nano BIGINT,
    nano_per_hour BIGINT,
    rate_source TEXT
);
CREATE INDEX engine_spans_by_time ON engine_spans (until_ns);
