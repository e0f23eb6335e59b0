-- How often and for how much. Money in nano-dollars; `_ns` are Unix nanoseconds, `_s` Unix seconds. An empty `model`
-- means any model, an empty `per` that the limit has no period.
CREATE TABLE limits (
    id TEXT PRIMARY KEY,
    subject TEXT NOT NULL,
    model TEXT NOT NULL,
    what TEXT NOT NULL,
    per TEXT NOT NULL,
    amount BIGINT NOT NULL,
    created_s BIGINT NOT NULL,
    UNIQUE (subject, model, what, per)
);
CREATE TABLE budgets (
    id TEXT PRIMARY KEY,
    subject TEXT NOT NULL,
    model TEXT NOT NULL,
    period TEXT NOT NULL,
    timezone TEXT NOT NULL,
    limit_nano BIGINT NOT NULL,
    soft_nano BIGINT,
    is_hard BIGINT NOT NULL,
    epoch BIGINT NOT NULL,
    created_s BIGINT NOT NULL,
    UNIQUE (subject, model, period)
);
-- What is spent and reserved of a budget in one of its periods. A rolling one keeps its sum in slices of time.
CREATE TABLE spends (
    id TEXT PRIMARY KEY,
    spent_nano BIGINT NOT NULL,
    reserved_nano BIGINT NOT NULL,
    window_s BIGINT,
    slices TEXT,
    updated_s BIGINT NOT NULL
);
-- Where a limit stands: `full_ns` is when its bucket will be full again, `held` counts what is under way or done.
CREATE TABLE paces (
    id TEXT PRIMARY KEY,
    full_ns BIGINT NOT NULL,
    held BIGINT NOT NULL,
    updated_s BIGINT NOT NULL
);
CREATE TABLE reservations (
    id TEXT PRIMARY KEY,
    is_open BIGINT NOT NULL,
    lease_until_ns BIGINT NOT NULL,
    created_ns BIGINT NOT NULL,
    tenant TEXT NOT NULL,
    key_id TEXT NOT NULL,
    model TEXT NOT NULL,
    task TEXT NOT NULL,
    granted_nano BIGINT NOT NULL,
    progress_nano BIGINT NOT NULL,
    num_input BIGINT NOT NULL,
    num_output BIGINT NOT NULL,
    holds TEXT NOT NULL
);
CREATE INDEX reservations_by_lease ON reservations (is_open, lease_until_ns);
CREATE TABLE settlements (
    id TEXT PRIMARY KEY,
    request_id TEXT NOT NULL,
    settled_ns BIGINT NOT NULL,
    tenant TEXT NOT NULL,
    key_id TEXT NOT NULL,
    model TEXT NOT NULL,
    task TEXT NOT NULL,
    outcome TEXT NOT NULL,
    input_uncached BIGINT NOT NULL,
    cache_read BIGINT NOT NULL,
    cache_write BIGINT NOT NULL,
    output_text BIGINT NOT NULL,
    output_reasoning BIGINT NOT NULL,
    is_estimate BIGINT NOT NULL,
    reserved_nano BIGINT NOT NULL,
    cost_nano BIGINT,
    price_source TEXT
);
CREATE INDEX settlements_by_time ON settlements (settled_ns);
