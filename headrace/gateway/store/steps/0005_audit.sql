-- The audit log: one chain of rows. `body` is what the digest covers, with the digest before it; the columns beside it
-- repeat what is searched for. `content` is sealed.
CREATE TABLE audit_rows (
    seq BIGINT PRIMARY KEY,
    uid TEXT NOT NULL UNIQUE,
    at_ns BIGINT NOT NULL,
    kind TEXT NOT NULL,
    tenant TEXT NOT NULL,
    key_id TEXT NOT NULL,
    request_id TEXT NOT NULL,
    model TEXT NOT NULL,
    decision TEXT NOT NULL,
    reason TEXT NOT NULL,
    body TEXT NOT NULL,
    content TEXT,
    digest TEXT NOT NULL
);
CREATE INDEX audit_rows_by_time ON audit_rows (at_ns);
CREATE INDEX audit_rows_by_request ON audit_rows (request_id);
-- Where the chain ends. `seal` is keyed, where there is a key.
CREATE TABLE audit_head (
    id BIGINT PRIMARY KEY CHECK (id = 1),
    seq BIGINT NOT NULL,
    digest TEXT NOT NULL,
    key_name TEXT NOT NULL,
    seal TEXT NOT NULL
);
INSERT INTO audit_head VALUES (1, 0, '', '', '');
-- Rows that retention has deleted: the digest before the first and that of the last bridge the chain.
CREATE TABLE audit_gaps (
    from_seq BIGINT PRIMARY KEY,
    until_seq BIGINT NOT NULL,
    before_digest TEXT NOT NULL,
    digest TEXT NOT NULL
);
-- What retention must leave alone. One of `tenant` and `request_id` is empty.
CREATE TABLE audit_holds (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    request_id TEXT NOT NULL,
    note TEXT NOT NULL,
    created_ns BIGINT NOT NULL
);
