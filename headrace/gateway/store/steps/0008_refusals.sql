-- Calls that were turned away before anything was set aside for them, counted by caller, model and reason; they cost nothing.
CREATE TABLE refusals (
    id TEXT PRIMARY KEY,
    from_ns BIGINT NOT NULL,
    until_ns BIGINT NOT NULL,
    tenant TEXT NOT NULL,
    key_id TEXT NOT NULL,
    model TEXT NOT NULL,
    reason TEXT NOT NULL,
    num BIGINT NOT NULL
);
CREATE INDEX refusals_by_time ON refusals (until_ns);
