-- How each request went: which engine, where its time was, what it looked like; null in rows from before, and where it is
-- not known. `_ns` are durations whose sum is the time from arrival to the end. Digests are keyed; no content is kept.
ALTER TABLE settlements ADD COLUMN engine TEXT;
ALTER TABLE settlements ADD COLUMN prompt_ns BIGINT NOT NULL DEFAULT 0;
ALTER TABLE settlements ADD COLUMN cached_nano BIGINT;
ALTER TABLE settlements ADD COLUMN output_nano BIGINT;
ALTER TABLE settlements ADD COLUMN admission_ns BIGINT;
ALTER TABLE settlements ADD COLUMN queue_ns BIGINT;
ALTER TABLE settlements ADD COLUMN prefill_ns BIGINT;
ALTER TABLE settlements ADD COLUMN decode_ns BIGINT;
ALTER TABLE settlements ADD COLUMN upstream_ns BIGINT;
ALTER TABLE settlements ADD COLUMN reading_ns BIGINT;
ALTER TABLE settlements ADD COLUMN ttft_ns BIGINT;
ALTER TABLE settlements ADD COLUMN num_preemptions BIGINT NOT NULL DEFAULT 0;
ALTER TABLE settlements ADD COLUMN is_stream BIGINT;
ALTER TABLE settlements ADD COLUMN is_repeatable BIGINT;
ALTER TABLE settlements ADD COLUMN most_output BIGINT;
ALTER TABLE settlements ADD COLUMN request_digest TEXT;
ALTER TABLE settlements ADD COLUMN prefix_digests TEXT;
-- How each engine was built; one row for each start of one.
CREATE TABLE engines (
    engine TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    backend TEXT NOT NULL,
    weights TEXT NOT NULL,
    kv_dtype TEXT NOT NULL,
    machine TEXT NOT NULL,
    threads BIGINT NOT NULL,
    num_weights BIGINT NOT NULL,
    weight_bytes BIGINT NOT NULL,
    kv_bytes BIGINT NOT NULL,
    kv_tokens BIGINT NOT NULL,
    max_num_seqs BIGINT NOT NULL
);
