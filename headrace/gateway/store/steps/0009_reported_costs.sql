-- What a remote upstream said that an answer cost, and what the price says of the same tokens, where it is known.
ALTER TABLE settlements ADD COLUMN reported_nano BIGINT;
ALTER TABLE settlements ADD COLUMN priced_nano BIGINT;
