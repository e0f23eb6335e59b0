-- What requests paid for the memory of the cached tokens they used (part of engine_ns and machine_nano), and what was set
-- aside for it and not paid yet: negative where requests paid for time that earlier rows had set aside.
ALTER TABLE settlements ADD COLUMN rent_ns BIGINT NOT NULL DEFAULT 0;
ALTER TABLE settlements ADD COLUMN rent_nano BIGINT;
ALTER TABLE engine_spans ADD COLUMN cached_ns BIGINT NOT NULL DEFAULT 0;
ALTER TABLE engine_spans ADD COLUMN cached_nano BIGINT;
